"""Which deployment a model name of a foreign protocol means. Gateways and workers use the same rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sealane.errors import FailedPrecondition


def resolve(name: str, deployments: Mapping[str, str]) -> str | None:
    """The deployment id that `name` means among `deployments` (deployment id -> model id) of one project.

    A deployment id wins; else a model id that has exactly one deployment; None where it is neither.

    Raises:
        FailedPrecondition: a model id with several deployments; the message names them.
    """
    if name in deployments:
        return name
    return only(name, sorted(deployment for deployment, model in deployments.items() if model == name))


def only(name: str, of_model: Sequence[str]) -> str | None:
    """The one deployment of a model id; None where there is none.

    Raises:
        FailedPrecondition: there are several.
    """
    if len(of_model) > 1:
        raise FailedPrecondition(
            f"model '{name}' has {len(of_model)} deployments; call one of them by its name: {', '.join(of_model)}",
            reason="MODEL_AMBIGUOUS",
        )
    return of_model[0] if of_model else None
