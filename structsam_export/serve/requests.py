"""What clients may ask, as JSON. Whatever does not fit is refused with the place and the reason."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from structsam_export.errors import shortened
from structsam_export.serve.refusals import Refused

MANY = 4096  # points in one request, whatever the server takes of a prompt
Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e6)]
Share = Annotated[float, Field(allow_inf_nan=False, ge=0, le=1)]
Point = tuple[Number, Number]
Encoding = Literal["rle", "coco_rle", "png"]
M = TypeVar("M", bound=BaseModel)


class Asked(BaseModel):
    """What every question has."""

    model_config = ConfigDict(extra="forbid")

    image: str = Field(
        description="A picture's name, as /v1/embed gives it, or its file as a data URI or in base64.", min_length=1
    )
    export: str | None = Field(None, description="Which export, by its name; the first one where it is left out.")
    encoding: Encoding = Field(
        "rle", description="Of masks: COCO's run lengths as numbers or compressed, or a PNG in base64."
    )


class PredictRequest(Asked):
    """One object of a picture: points, a box or both; coordinates are in pixels of the picture."""

    points: list[Point] | None = Field(None, max_length=MANY, description="x and y of each.")
    labels: list[Literal[0, 1]] | None = Field(
        None, max_length=MANY, description="1 object, 0 background, of each point; all 1 where it is left out."
    )
    box: tuple[Number, Number, Number, Number] | None = Field(None, description="x0, y0, x1, y1.")
    mask_input: str | None = Field(None, description="An earlier answer's `low_res`: base64 of float32 (1, 4h, 4w).")
    multimask: bool = Field(False, description="SAM's three masks instead of one.")
    low_res: bool = Field(False, description="Also give the logits of each mask, for a later `mask_input`.")


class TokensRequest(BaseModel):
    """Which tokens of a picture each block of an encoder treats as one."""

    model_config = ConfigDict(extra="forbid")

    image: str = Field(description="A picture's name, or its file as a data URI or in base64.", min_length=1)
    export: str | None = Field(None, description="Which export, by its name; the first one where it is left out.")


class EverythingRequest(Asked):
    """All objects of a picture, from a grid of points."""

    points_per_side: int = Field(32, ge=1, le=64, description="Of the grid.")
    min_iou: Share = Field(0.88, description="Masks whose IoU the model guesses lower are left out.")
    min_stability: Share = Field(0.95, description="Masks that change more with the threshold are left out.")
    min_area: int = Field(0, ge=0, le=10**8, description="Smaller holes and islands go, in pixels.")


class Mark(BaseModel):
    """A prompt of X-AnyLabeling: a point (x, y), or a rectangle by two corners."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["point", "rectangle"]
    data: list[Number] = Field(max_length=4)
    label: int = 1


class RemoteParameters(BaseModel):
    """What X-AnyLabeling sends besides the picture; what it has for other models is ignored."""

    model_config = ConfigDict(extra="ignore")

    marks: list[Mark] = Field(default_factory=list, max_length=MANY)
    epsilon_factor: Share = Field(default=0.001, description="How far a polygon may be off, as a share of its length.")


class RemoteRequest(BaseModel):
    """A question in X-AnyLabeling's form; it has a `model`."""

    model_config = ConfigDict(extra="ignore")

    model: str
    image: str = Field(min_length=1, description="A data URI, or base64.")
    params: RemoteParameters = Field(default_factory=lambda: RemoteParameters())


class Form(BaseModel):
    """Enough of a body to tell whose form it has."""

    model_config = ConfigDict(extra="ignore")

    model: Any = None


def parsed(kind: type[M], body: bytes) -> M:
    """A question from the body of a request.

    Raises:
        Refused: no JSON (400), or not this question (422).
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise Refused(400, f"The body is no JSON: {shortened(first['msg'])}.") from None
        where = shortened(".".join(str(part) for part in first["loc"]) or "body")
        raise Refused(422, f"{where}: {shortened(first['msg'])}.") from None
