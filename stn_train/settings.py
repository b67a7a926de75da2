"""What every section of a config has in common."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Frozen settings without unknown keys or silent conversions.

    The documentation of a field stands under it.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
    )
