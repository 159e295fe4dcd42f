"""The base of every component's config, and the registries by which a name in a config file finds its class.

A component (optimizer, strategy, model, data set …) owns its config: a frozen pydantic model beside the class it builds, with a
``name`` of its own. Registering the config makes the name usable in files, on the command line and by third parties:

    @optimizers.register
    class LionConfig(OptimizerConfig):
        name: Literal["lion"] = "lion"
        lr: float = Field(1e-4, gt=0)
        def build(self, module): ...

This file imports nothing of ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Generic, TypeVar, Union

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny
from pydantic.fields import FieldInfo


class UserError(ValueError):
    """The user's mistake: reported as one clear message, without a traceback, and with exit code 2."""


class Config(BaseModel):
    """A frozen set of settings: unknown keys are refused, and a value is never coerced from another type."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
    )


class ComponentConfig(Config):
    """The config of a swappable thing; a subclass sets ``name: Literal["its name"] = "its name"``."""

    name: str


C = TypeVar("C", bound=ComponentConfig)


class Registry(Generic[C]):
    """The classes that one section of the config can choose from.

    Args:
        section: the key in the config file, such as ``optimizer``.
        default: the name taken when the file gives none.
    """

    def __init__(self, section: str, default: str) -> None:
        self.section, self.default = section, default
        self._classes: dict[str, type[C]] = {}
        self._holders: list[tuple[type[Config], str]] = []

    def register(self, config_class: type[C]) -> type[C]:
        """Make ``config_class`` selectable by its name; a class decorator.

        Raises:
            TypeError: if the class gives its ``name`` no default.
            ValueError: if another class has that name already.
        """
        name = config_class.model_fields["name"].default
        if not isinstance(name, str):
            raise TypeError(f'{config_class.__name__} needs a name: `name: Literal["my_{self.section}"] = "my_{self.section}"`')
        taken = self._classes.setdefault(name, config_class)
        if taken.__qualname__ != config_class.__qualname__ or taken.__module__ != config_class.__module__:
            raise ValueError(f"{self.section}.name={name} is registered already, by {taken.__module__}.{taken.__qualname__}")
        self._classes[name] = config_class  # the same class again: its module was reloaded
        for holder, field in self._holders:
            self._fit(holder, field)
        return config_class

    def choose_in(self, holder: type[Config], field: str) -> None:
        """Let ``field`` of a config be any registered class, those registered later too."""
        self._holders.append((holder, field))
        self._fit(holder, field)

    def _fit(self, holder: type[Config], field: str) -> None:
        choice: Any = SerializeAsAny[self.union()]  # type: ignore[misc]
        holder.model_fields[field] = FieldInfo.from_annotated_attribute(choice, holder.model_fields[field].default)
        holder.model_rebuild(force=True)

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted(self._classes)

    def __getitem__(self, name: str) -> type[C]:
        return self._classes[name]

    def __contains__(self, name: object) -> bool:
        return name in self._classes

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def union(self) -> Any:
        """A pydantic type: any registered class, told apart by ``name``."""
        classes = tuple(self._classes[name] for name in self.names())
        return Annotated[Union[classes], Field(discriminator="name")] if len(classes) > 1 else classes[0]  # noqa: UP007
