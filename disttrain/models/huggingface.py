"""Any causal language model that Hugging Face's ``transformers`` implements, from files on this machine only.

No hub is asked and no code of a checkpoint is run: ``path`` must be a local directory, weights must be safetensors.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast

from pydantic import model_validator
from torch import Tensor, nn

from disttrain.component import UserError
from disttrain.models.base import ModelConfig, at_least, models, token_task
from disttrain.task import Task, TokenTask

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@models.register
class HuggingFaceConfig(ModelConfig):
    """A causal language model of ``transformers``, either described by ``config`` or found at ``path``."""

    name: Literal["huggingface"] = "huggingface"
    config: dict[str, Any] | None = None
    """The model's description: model_type, such as llama or gpt2, and that type's settings by their transformers names.
    vocab_size is the data's unless it is given."""
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

    def build(self, task: Task) -> nn.Module:
        """The ``transformers`` model itself, in fp32, with one change: called, it returns its logits alone.

        A hook does that, so names and state dict are those of ``transformers`` and ``save_pretrained`` works. Its
        ``generate`` does not, as it needs the full output: load the saved model anew for that.

        Raises:
            UserError: if transformers is not installed, or the model is unknown or too small for the data.
        """
        data = token_task(self.name, task)
        description = self._description(data.vocabulary_size)
        _check_fits(description, data)
        description.use_cache = False
        description.is_decoder = True  # BERT and its kin look ahead without it; decoders do not read it
        module = self._module(description).float()
        module.register_forward_hook(_logits_only)
        return module

    def _description(self, vocabulary_size: int) -> PretrainedConfig:
        if self.config is not None:
            return _described({"vocab_size": vocabulary_size} | self.config)
        with _blamed_on(f"path={self.path!r}"):
            description = _transformers().AutoConfig.from_pretrained(self.path, local_files_only=True, trust_remote_code=False)
        _check_known(description.model_type)
        return cast("PretrainedConfig", description)

    def _module(self, description: PretrainedConfig) -> nn.Module:
        auto = _transformers().AutoModelForCausalLM
        if self.pretrained:
            return _with_weights(auto, str(self.path), description)
        return cast(nn.Module, auto.from_config(description, trust_remote_code=False))


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise UserError("model.name=huggingface needs transformers: pip install 'disttrain[hf]'") from None
    return transformers


@contextmanager
def _blamed_on(setting: str) -> Iterator[None]:
    """Report whatever transformers raises on the user's own files and values as a mistake in ``setting``."""
    try:
        yield
    except Exception as error:
        raise UserError(f"model.{setting}: {error}") from error


def _described(settings: dict[str, Any]) -> PretrainedConfig:
    """The description; settings that its model type does not have are refused, where transformers would store them."""
    model_type = settings["model_type"]
    _check_known(model_type)
    describe = _transformers().AutoConfig.for_model
    with _blamed_on("config"):
        known, description = describe(model_type).to_dict(), describe(**settings)
    stored = description.to_dict()
    for setting in settings:
        if setting in stored and setting not in known:
            raise UserError(f"model.config.{setting}: {model_type} has no such setting{_nearest(setting, known)}")
    return cast("PretrainedConfig", description)


def _check_known(model_type: str) -> None:
    known = _transformers().models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if model_type not in known:
        near = _nearest(model_type, known)
        raise UserError(f"transformers has no causal language model of model_type={model_type!r}{near}")


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _check_fits(description: PretrainedConfig, data: TokenTask) -> None:
    """Refuse fewer tokens or positions than the data has; a model that declares no limit of positions has none."""
    text = description.get_text_config()
    at_least("config.vocab_size", text.vocab_size, data.vocabulary_size)
    at_least("config.max_position_embeddings", getattr(text, "max_position_embeddings", None), data.sequence_length)


def _with_weights(auto: Any, path: str, description: PretrainedConfig) -> nn.Module:
    """The model with the weights at ``path``, all of them: transformers would draw those that are missing."""
    with _blamed_on(f"path={path!r}"):
        module, loaded = auto.from_pretrained(
            path,
            config=description,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    missing = sorted(loaded["missing_keys"])
    if missing:
        raise UserError(f"model.path={path!r}: {len(missing)} weights are missing, such as {', '.join(missing[:3])}")
    return cast(nn.Module, module)


def _logits_only(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Tensor:
    return cast(Tensor, output.logits)
