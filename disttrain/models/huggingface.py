"""Any causal language model that Hugging Face's ``transformers`` implements, from files on this machine only.

No hub is asked and no code of a checkpoint is run: ``path`` must be a local directory, weights must be safetensors.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import model_validator
from torch import Tensor, nn

from disttrain.component import UserError
from disttrain.models.base import ModelConfig, at_least, models

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@models.register
class HuggingFaceConfig(ModelConfig):
    """A causal language model of ``transformers``, either described by ``config`` or found at ``path``."""

    name: Literal["huggingface"] = "huggingface"
    config: dict[str, Any] | None = None
    """The model's description: model_type, such as llama or gpt2, and that type's settings by their names in transformers.
    The vocabulary's size is the data's unless vocab_size is given."""
    path: str | None = None
    """A local directory with config.json; a name on the hub is refused."""
    pretrained: bool = False
    """Whether to load the weights at path, too, instead of drawing new ones."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.config is None) == (self.path is None):
            raise ValueError("give either config, a model's description, or path, a local directory with config.json")
        if self.config is not None and self.pretrained:
            raise ValueError("pretrained: true needs path, where the weights are; config describes a new model")
        if self.config is not None and not isinstance(self.config.get("model_type"), str):
            raise ValueError("config needs a model_type, such as llama or gpt2")
        if self.path is not None and not (Path(self.path) / "config.json").is_file():
            raise ValueError(f"path={self.path!r} is not a local directory with a config.json; nothing is downloaded")
        return self

    def build(self, vocabulary_size: int, sequence_length: int) -> nn.Module:
        """The ``transformers`` model itself, in fp32, with one change: called, it returns its logits alone.

        A hook does that, so names and state dict are those of ``transformers`` and ``save_pretrained`` works. Its
        ``generate`` does not, as it needs the full output: load the saved model anew for that.

        Raises:
            ImportError: if transformers is not installed.
            UserError: if the model is unknown, or too small for the data.
        """
        description = self._description(vocabulary_size)
        _check_fits(description, vocabulary_size, sequence_length)
        description.use_cache = False
        module = self._module(description).float()
        module.register_forward_hook(_logits_only)
        return module

    def _description(self, vocabulary_size: int) -> PretrainedConfig:
        transformers = _transformers()
        try:
            if self.config is not None:
                return _described(transformers, {"vocab_size": vocabulary_size} | self.config)
            return transformers.AutoConfig.from_pretrained(self.path, local_files_only=True, trust_remote_code=False)
        except (ValueError, TypeError) as error:
            raise UserError(f"model.{'config' if self.path is None else 'path'}: {error}") from error

    def _module(self, description: PretrainedConfig) -> nn.Module:
        auto = _transformers().AutoModelForCausalLM
        if type(description) not in auto._model_mapping:
            raise UserError(f"transformers has no causal language model of model_type {description.model_type!r}")
        if not self.pretrained:
            module: nn.Module = auto.from_config(description, trust_remote_code=False)
            return module
        return _with_weights(auto, str(self.path), description)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError("model.name=huggingface needs transformers: pip install 'disttrain[hf]'") from error
    return transformers


def _described(transformers: Any, settings: dict[str, Any]) -> PretrainedConfig:
    """The config object; settings that its model type does not have are refused, where transformers would store them."""
    model_type = settings["model_type"]
    if model_type not in transformers.CONFIG_MAPPING:
        near = difflib.get_close_matches(model_type, transformers.CONFIG_MAPPING.keys())
        raise UserError(f"model.config.model_type={model_type!r} is unknown{_did_you_mean(near)}")
    known = transformers.AutoConfig.for_model(model_type).to_dict()
    description: PretrainedConfig = transformers.AutoConfig.for_model(**settings)
    stored = description.to_dict()
    for setting in settings:
        if setting in stored and setting not in known:
            near = difflib.get_close_matches(setting, known)
            raise UserError(f"model.config.{setting}: {model_type} has no such setting{_did_you_mean(near)}")
    return description


def _did_you_mean(near: list[str]) -> str:
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _check_fits(description: PretrainedConfig, vocabulary_size: int, sequence_length: int) -> None:
    """Refuse a vocabulary or a number of positions below the data's; a model without a limit of positions has none."""
    text = description.get_text_config()
    at_least("config.vocab_size", text.vocab_size, vocabulary_size)
    at_least("config.max_position_embeddings", getattr(text, "max_position_embeddings", None), sequence_length)


def _with_weights(auto: Any, path: str, description: PretrainedConfig) -> nn.Module:
    """The model with the weights at ``path``; a checkpoint that lacks some is refused, where transformers would draw them."""
    try:
        module, loaded = auto.from_pretrained(
            path,
            config=description,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except OSError as error:
        raise UserError(f"model.path={path!r}: {error}") from error
    missing = sorted(loaded["missing_keys"])
    if missing:
        raise UserError(
            f"model.path={path!r}: the weights lack {', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}"
        )
    return module  # type: ignore[no-any-return]


def _logits_only(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Tensor:
    return output.logits  # type: ignore[no-any-return]
