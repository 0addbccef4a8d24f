"""Which engines sleep in a pod of level S2, how each is started, and which of them is a revision's own.

An engine is started long before its revision asks, with all that makes it what it is: so the revisions that share it
have one list of models, one set of arguments beside the model's place and name, and one set of variables beside
Knative's own. Whoever differs in these has another pool; whoever can't be served by any of the engines is told why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from kserve_ext.api.knative.conditions import Document
from kserve_ext.api.standby import names
from kserve_ext.core.node.command_line import replace_path
from kserve_ext.core.standby import command

MODEL: Final = "--model"
NAME: Final = "--served-model-name"
SLEEP: Final = "--enable-sleep-mode"
#: They are each engine's own.
_OWN: Final = (MODEL, NAME, "--port", "--host")
#: Variables that Knative gives a container; they say which revision it is.
_KNATIVES: Final = ("K_REVISION", "K_SERVICE", "K_CONFIGURATION", "PORT")


class Engine(NamedTuple):
    """One that sleeps in the pod."""

    name: str  # as the annotation has it
    served_as: str  # --served-model-name; "" = none is given
    model: str  # where the pod has it


class WrongEngine(Exception):
    """None of the engines can serve it, and what to write."""


def named(entries: tuple[str, ...]) -> tuple[Engine, ...]:
    found = []
    for entry in entries:
        served_as, _, place = entry.rpartition("=")
        model = place
        if place.startswith("pvc://"):
            model = f"{names.CLAIMS}/{place.removeprefix('pvc://')}"
        found.append(Engine(entry, served_as, model.rstrip("/")))
    return tuple(found)


def own(
    engines: tuple[Engine, ...],
    user: Document,
    env: Mapping[str, str],
    models: tuple[tuple[str, str], ...],
) -> str:
    """The name of the one that serves this container's model. Raises WrongEngine.

    `env`: its variables; `models`: paths that it uses, and where the standby pod has them.
    """
    words = _words(user, env)
    if SLEEP not in words:
        raise WrongEngine(f"an engine sleeps only if it was started to: add {SLEEP} to its args")
    if not (user.get("resources") or {}).get("limits", {}).get("memory"):
        raise WrongEngine(
            "sleeping engines are bounded by the memory of their pod: set resources.limits.memory"
        )
    places, called = _values(words, MODEL), _values(words, NAME)
    if len(places) != 1:
        raise WrongEngine(f"its args have no {MODEL} with one value, by which its engine would be known")
    place = places[0]
    for path, where in models:
        place = replace_path(place, path, where)
    _only_there(words, env, models)
    here = [engine for engine in engines if engine.model == place.rstrip("/")]
    if not here:
        known = ", ".join(engine.model for engine in engines)
        raise WrongEngine(f"its model is {place}, and {names.MODELS} has {known}: add it there")
    for engine in here:
        if called == ([engine.served_as] if engine.served_as else []):
            return engine.name
    said = " ".join(called) or "no name"
    raise WrongEngine(f"it serves {place} as {said}, and {names.MODELS} has {here[0].name}: make them one")


def plan(engines: tuple[Engine, ...], user: Document, env: Mapping[str, str], zygote: str) -> Document:
    """What the pod's slot is told (GALAXY_SLOT_ENGINES)."""
    common = shape(user, env)
    command_ = [str(word) for word in user.get("command") or ("python", "-m", zygote)]
    return {
        "env": sorted(entry["name"] for entry in user.get("env") or () if entry["name"] not in _KNATIVES),
        "engines": [
            {
                "name": engine.name,
                "model": engine.model,
                "argv": [
                    *command_,
                    *common,
                    f"{MODEL}={engine.model}",
                    *([f"{NAME}={engine.served_as}"] if engine.served_as else []),
                ],
            }
            for engine in engines
        ],
    }


def variables(env: Mapping[str, str]) -> dict[str, str]:
    """Those that an engine reads, whatever revision it is woken for."""
    return {name: value for name, value in env.items() if name not in _KNATIVES}


def shape(user: Document, env: Mapping[str, str]) -> list[str]:
    """Its arguments without what is each engine's own."""
    return without(_words(user, env), _OWN)


def without(words: list[str], options: tuple[str, ...]) -> list[str]:
    """Arguments without these options and their values."""
    kept: list[str] = []
    value_follows = False
    for word in words:
        if value_follows and not word.startswith("--"):
            continue
        name, equals, _ = word.partition("=")
        value_follows = name in options and not equals
        if name not in options:
            kept.append(word)
    return kept


# --- inside


def _words(user: Document, env: Mapping[str, str]) -> list[str]:
    return [command.expand(str(word), env) for word in user.get("args") or ()]


def _values(words: list[str], option: str) -> list[str]:
    found: list[str] = []
    follows = False
    for word in words:
        name, equals, value = word.partition("=")
        if name == option:
            found += [value] if equals else []
            follows = not equals
        elif word.startswith("--"):
            follows = False
        elif follows:
            found.append(word)
    return found


def _only_there(words: list[str], env: Mapping[str, str], models: tuple[tuple[str, str], ...]) -> None:
    """Nothing else may lie in the folder that another model is mounted at for the next revision."""
    texts = [(f"argument {word}", word) for word in without(words, _OWN)]
    texts += [(f"env {name}", value) for name, value in variables(env).items()]
    for what, text in texts:
        for path, where in models:
            if path.rstrip("/") != where.rstrip("/") and replace_path(text, path, where) != text:
                raise WrongEngine(
                    f"{what.partition('=')[0]} names a file below {path}, and engines are started before it is known "
                    "whose they are: leave it out"
                )
