// Arithmetic on the pixels of two frames of one size.

/** A decoded picture as ImageData. */
export function pixelsOf(picture) {
  const context = new OffscreenCanvas(picture.width, picture.height).getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0);
  picture.close();
  return context.getImageData(0, 0, context.canvas.width, context.canvas.height);
}

/** The largest difference of any channel in grey levels, and the share of pixels that differ at all. */
export function difference(one, other) {
  let [largest, differing] = [0, 0];
  for (let at = 0; at < one.data.length; at += 4) {
    let most = 0;
    for (let channel = at; channel < at + 3; channel += 1) {
      most = Math.max(most, Math.abs(one.data[channel] - other.data[channel]));
    }
    largest = Math.max(largest, most);
    if (most > 0) differing += 1;
  }
  return { largest, share: (4 * differing) / one.data.length };
}

/** Each channel's difference times `factor`, black where there is none. */
export function drawDifference(canvas, one, other, factor) {
  const drawn = new ImageData(one.width, one.height);
  for (let at = 0; at < one.data.length; at += 1) {
    drawn.data[at] = at % 4 === 3 ? 255 : factor * Math.abs(one.data[at] - other.data[at]);
  }
  put(canvas, drawn);
}

/** `one` left of `share` of the width, `other` right of it. */
export function drawWipe(canvas, one, other, share) {
  put(canvas, other);
  const columns = Math.round(share * one.width);
  if (columns > 0) canvas.getContext("2d").putImageData(one, 0, 0, 0, 0, columns, one.height);
}

export function put(canvas, pixels) {
  [canvas.width, canvas.height] = [pixels.width, pixels.height];
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}
