"""What fields of the service's documents are made of: numbers that are finite, keys that may be absent."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

Number = Annotated[float, Field(allow_inf_nan=False)]
Moment = Annotated[str, Field(json_schema_extra={"format": "date-time"}, examples=["2026-11-21T23:09:48+00:00"])]
Share = Annotated[float, Field(ge=0, le=1)]
Dtype = Literal["fp8", "mxfp8", "mxfp4"]
State = Literal["running", "finished", "interrupted", "failed", "unproven"]
JobState = Literal["queued", "running", "cancelling", "cancelled", "finished", "failed"]


def no_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


# for a field with the default None: a key that may be absent, and is never null
Left = SkipJsonSchema[None]
LEFT_OUT = Field(None, json_schema_extra=no_default)


def never_null(schema: dict[str, Any]) -> None:
    """A request's model, or one parameter's schema, whose optional fields are left out and not sent as null."""
    for field in schema.get("properties", {"": schema}).values():
        kinds = [kind for kind in field.get("anyOf", ()) if kind != {"type": "null"}]
        if len(kinds) == 1:
            del field["anyOf"]
            field.update(kinds[0])
        elif kinds:
            field["anyOf"] = kinds
        if field.get("default", ...) is None:
            del field["default"]


class Document(BaseModel):
    model_config = ConfigDict(extra="forbid")
