"""Times on the command line: ``90``, ``90s``, ``5m``, ``2h``, ``1d``."""

from __future__ import annotations

import math

import click

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Duration(click.ParamType[float]):
    """A length of time; the command gets seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds of a text such as ``5m``."""
        text = str(value)
        number, unit = (text[:-1], text[-1]) if text[-1:] in _SECONDS else (text, "s")
        try:
            seconds = float(number) * _SECONDS[unit]
        except ValueError:
            seconds = math.nan
        if not 0 <= seconds < math.inf:
            self.fail(f"{text!r} is no length of time; write 90s, 5m, 2h or 1d", param, ctx)
        return seconds
