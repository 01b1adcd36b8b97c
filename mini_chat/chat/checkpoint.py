"""Reading a trained model's directory, and saying in one line what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mini_chat.config import STAGE_RECORD, TRAINING_STAGES
from mini_chat.errors import UserError
from mini_chat.files import read_json, sha256_file

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

OURS = ("qwen3", "qwen3_moe")


def pick_device(name: str | None = None) -> torch.device:
    """The device called auto, cpu, cuda or mps; auto is the fastest that this machine has.

    Raises:
        UserError: no such device here.
    """
    from mini_chat.config import Machine
    from mini_chat.device import choose

    if name not in (None, "auto", "cpu", "cuda", "mps"):
        raise UserError(f"device {name!r} is unknown; choose auto, cpu, cuda or mps")
    return choose(Machine.model_validate({"device": name or "auto"})).torch_device


def load_checkpoint(
    directory: Path | str, device: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Load model and tokenizer from a Hugging Face directory, or from the last finished stage of a run's directory.

    Safetensors only, no code from the directory.

    On the CPU the model computes in float32; elsewhere in the precision it was saved in.

    Raises:
        UserError: the directory is missing, incomplete or damaged.
    """
    directory = last_stage(Path(directory))
    check_files(directory)
    verify_checksums(directory)
    model = load_model(directory, pick_device(device))
    tokenizer = load_tokenizer(directory)
    vocabulary = len(tokenizer)
    if vocabulary > model.config.vocab_size:
        raise UserError(
            f"{directory}: the tokenizer has {vocabulary} entries, the model {model.config.vocab_size}; "
            "the two files are from different runs, copy the whole directory again"
        )
    return model, tokenizer


def last_stage(directory: Path) -> Path:
    """The directory itself where it is a model's, else that of the last stage of the run that is finished."""
    if not (directory / "config.json").is_file():
        for stage in reversed(TRAINING_STAGES):
            if (directory / stage / STAGE_RECORD).is_file():
                return directory / stage
    return directory


def check_files(directory: Path) -> None:
    """Raise UserError unless everything a model directory needs is there."""
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; name one that training wrote, with config.json in it")
    if not (directory / "config.json").is_file():
        inside = sorted(path.parent.name for path in directory.glob("*/config.json"))
        hint = f"; did you mean {directory / inside[-1]}?" if inside else "; name one that training wrote"
        raise UserError(f"{directory}: no config.json, so this is no model directory{hint}")
    if not (directory / "model.safetensors").is_file() and not (directory / "model.safetensors.index.json").is_file():
        raise UserError(f"{directory}: no model.safetensors; the weights are missing, copy them or train again")
    if not (directory / "tokenizer.json").is_file():
        raise UserError(f"{directory}: no tokenizer.json; copy it from the run's tokenizer directory")


def verify_checksums(directory: Path) -> None:
    """Compare the weights with the sums that the stage wrote into its `stage.json`, where there is one."""
    path = directory / STAGE_RECORD
    if not path.is_file():
        return
    record = read_json(path)
    checksums = record.get("sha256") if isinstance(record, dict) else None
    if not isinstance(checksums, dict):
        raise UserError(f"{path}: damaged, it holds no SHA-256 sums; delete it or restore it")
    for name, expected in checksums.items():
        file = directory / name
        if not file.is_file():
            raise UserError(f"{file}: named in {STAGE_RECORD} and missing; copy it again from where it was trained")
        if sha256_file(file) != expected:
            raise UserError(f"{file}: damaged (its SHA-256 differs from {STAGE_RECORD}); copy it again or train again")


def load_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """The directory's tokenizer."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # the Rust reader raises bare Exception
        path = directory / "tokenizer.json"
        raise UserError(f"{path}: cannot be read ({_first_line(error)}); copy it again") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(
            f"{directory}: its tokenizer is a {type(tokenizer).__name__}; use a model with a byte-level one"
        )
    return tokenizer


def load_model(directory: Path, device: torch.device) -> PreTrainedModel:
    """The directory's model in evaluation mode on `device`."""
    from safetensors import SafetensorError
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    weights = directory / "model.safetensors"
    options: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    options["dtype"] = "float32" if device.type == "cpu" else "auto"
    try:
        model, found = _model_class(directory).from_pretrained(directory, **options)
    except SafetensorError as error:
        raise UserError(f"{weights}: damaged or cut short ({_first_line(error)}); copy or train it again") from error
    except (RuntimeError, ValueError, OSError, KeyError, TypeError) as error:
        raise UserError(f"{directory}: the model cannot be loaded ({_first_line(error)}); copy it again") from error
    wrong_shape = [name for name, *_shapes in found["mismatched_keys"]]
    differing = sorted([*found["missing_keys"], *found["unexpected_keys"], *wrong_shape])
    if differing:  # transformers would go on, with random weights in the gaps
        names = differing[0] + (f" and {len(differing) - 1} more" if len(differing) > 1 else "")
        raise UserError(
            f"{weights}: does not match config.json ({names}); the two are from different models, copy both"
        )
    return model.to(device).eval()


def _model_class(directory: Path) -> Any:
    """Our model for what it can compute, transformers' own for any other causal language model."""
    path = directory / "config.json"
    config = read_json(path)
    if not isinstance(config, dict) or "model_type" not in config:
        raise UserError(f"{path}: names no model_type; copy it again")
    if config["model_type"] in OURS:
        from mini_chat.model.model_slm import SLMForCausalLM

        return SLMForCausalLM
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return json.dumps(lines[0][:160], ensure_ascii=False)[1:-1] if lines else type(error).__name__
