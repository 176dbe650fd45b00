"""What the arms' engines will be asked, and what memory each gets: of this machine, or of a GPU that they share."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.config import Evaluate
from pipeline.console import say
from pipeline.errors import UserError
from pipeline.eval_sets import chat_set
from pipeline.evaluate.risks.memorization import RECITED_TOKENS, Opening
from pipeline.evaluate.tasks.chat import ChatFormat
from pipeline.inference import kv_cache
from pipeline.inference.engine_args import engine_settings
from pipeline.inference.kv_cache import GPU_SETTING, Load
from pipeline.machine import hardware, meters

Engines = dict[str, tuple[Path, dict[str, Any]]]  # by arm: its model's folder, and the arguments of its engine


def load_of(
    sets: list[tuple[list[chat_set.ChatItem], int]],
    openings: list[Opening],
    chat_formats: Iterable[ChatFormat],
    settings: Evaluate,
) -> Load:
    """What an arm is asked: `sets` of items, each set with its longest answer, and openings to go on with.

    The longest request is the last turn of a conversation, whose earlier answers were as long as they may be.
    """
    longest = [len(opening.prompt_token_ids) + RECITED_TOKENS for opening in openings]
    for chat_format in {id(chat_format): chat_format for chat_format in chat_formats}.values():
        hello = len(chat_format.template.render([{"role": "user", "content": "Hi"}]))
        longest.append(hello + settings.speed_tokens)
        for items, max_tokens in sets:
            for item in items:
                texts = [text for text in (item.system, *item.turns) if text]
                written = sum(map(len, chat_format.tokenizer(texts, add_special_tokens=False).input_ids))
                longest.append(written + len(texts) * hello + len(item.turns) * max_tokens)
    at_once = max(*settings.speed_concurrency, len(openings), *(len(items) for items, _ in sets), 1)
    return Load(at_once, max(longest))


def are_up_together(engines: Engines, load: Load, settings: Evaluate) -> bool:
    """Whether all arms are timed in turn: as evaluate.interleave_speed says; else on a CPU, if its memory allows it."""
    if settings.interleave_speed is not None or not hardware.is_cpu():
        return bool(settings.interleave_speed)
    fits = kv_cache.shares(_settings(engines), load) is not None
    if not fits:
        say("evaluate: memory does not hold all arms at once, so each is measured alone")
    return fits


def shared_out(engines: Engines, load: Load) -> dict[str, tuple[dict[str, Any], Load]]:
    """By arm: the arguments of its engine and what it is asked, each with its share of the memory where several are up.

    Raises UserError if they do not fit together.
    """
    if len(engines) == 1:
        return {arm: (arguments, load) for arm, (_, arguments) in engines.items()}
    if not hardware.is_cpu():
        return {arm: (arguments, load) for arm, arguments in _on_one_gpu(engines).items()}
    shares = kv_cache.shares(_settings(engines), load)
    if shares is None:
        free_gib = hardware.available_bytes() / hardware.GIB
        raise UserError(
            f"evaluate.interleave_speed=true needs {len(engines)} models in memory at once, but they do not fit"
            f" the {free_gib:.1f} GiB that are free: set it to false, or free some memory"
        )
    given = zip(engines.items(), shares, strict=True)
    return {arm: (args, Load(load.num_requests, load.tokens, share)) for (arm, (_, args)), share in given}


def _on_one_gpu(engines: Engines) -> dict[str, dict[str, Any]]:
    """Each arm's arguments with its part of the card; those where the user has set it stay."""
    card = meters.fullest_gpu()
    if card is None:  # no driver's library to ask: vLLM says what is wrong, if anything is
        return {arm: arguments for arm, (_, arguments) in engines.items()}
    weights = [kv_cache.gpu_weights_bytes(path, settings) for path, settings in _settings(engines)]
    own = [arguments.get(GPU_SETTING) for _, arguments in engines.values()]
    parts = zip(engines.items(), kv_cache.gpu_shares(weights, own, *card), strict=True)
    return {arm: arguments | {GPU_SETTING: round(part, 4)} for (arm, (_, arguments)), part in parts}


def _settings(engines: Engines) -> list[tuple[str, dict[str, Any]]]:
    return [(str(folder), engine_settings(str(folder), arguments, 0)) for folder, arguments in engines.values()]
