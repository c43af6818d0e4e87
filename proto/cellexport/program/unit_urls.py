"""The URLs of the unit and its cells. They come from the settings, never from a request's `Host`."""

from dataclasses import dataclass

from cellexport.environment import Environment, SettingError

_CELL = "{cell}"


@dataclass(frozen=True, slots=True)
class UnitUrls:
    """The unit's URL, which ends in a slash, and the pattern of its cells' URLs, with `{cell}` for the name."""

    unit: str
    pattern: str

    @classmethod
    def read(cls, environment: Environment) -> "UnitUrls":
        """Read `CELLEXPORT_UNIT_URL` and `CELLEXPORT_CELL_URL`. Raise `SettingError` for an invalid value."""
        unit = environment.url("CELLEXPORT_UNIT_URL", "http://localhost:8080/")
        name = "CELLEXPORT_CELL_URL"
        pattern = environment.text(name, f"{unit}{_CELL}/")
        if pattern.count(_CELL) != 1:
            raise SettingError(f"{name}: must have {_CELL} once, like https://{_CELL}.unit1.example/.")
        return cls(unit, environment.url(name, pattern, placeholder=_CELL))

    def cell(self, name: str) -> str:
        return self.pattern.replace(_CELL, name)
