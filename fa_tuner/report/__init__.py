"""What a person or a program looks at: results as JSON documents, and pictures of clips."""
