"""The packed log-probs of one response: a support of token ids and the mass of everything else, per token.

A response is one Parquet struct of plain integers and byte strings, each byte string a column of its own, so that
zstd finds like next to like. Version 2, N = tokens of the response, E = entries of all its rows:

    field        content
    version      2
    kind         entries have levels (log-probs), 0: of the likeliest tokens, 3: of tokens that were drawn;
                 or counts, of 1: systematic, 2: independent draws (generate/support.py)
    num_tokens   N
    width        levels: entries of each row, K; 0 where rows differ, and then `lengths` says. Counts: how many of the
                 likeliest tokens were drawn from
    num_draws    counts: n, the draws of each row; else 0
    lengths      levels of rows that differ: N uint16 (little endian), entries per row
    codes        levels: E uint8, differences of neighbouring levels; counts: see below
    ids_0, 1, 2  E uint8 each: lowest, middle and highest byte of the id differences (the highest: empty if all are 0)
    tail_0, 1    N uint8 each: low and high byte of round(tail / 2e-4). Levels: the tail is the mass outside the row's
                 ids; counts: that outside the tokens drawn from

Entries of a row stand by level, lowest (likeliest) first, or by count, highest first; equal ones by ascending id.

- Level l stands for a log-prob of −NATS[l]: NATS[0] = 0, NATS[l+1] = NATS[l] + min(1, exp(NATS[l] / 2) / 48). Steps are
  even in √p, where forward KL weighs every error alike, until they reach 1 nat (p < 5e-4). An entry's code is its level
  less that of the entry before it in its row (the first: less 0).
- Counts are coded row by row as the symbols 2·count + last, for the counts of 2 or more alone, `last` being 1 in the
  last symbol of a row; a row without any has the one symbol 1. What is left of n are entries with a count of 1.
- An entry's id is stored less that of the entry before it, if that is in the same row with the same level or count.
- Levels of rows of one width stand entry by entry, codes and id bytes alike: all rows' first, then all rows' second,
  ...; all else stands row by row.

Decoding makes each row and its tail sum to 1, the tail as stored: an entry's probability is (1 − tail) times its
exp(−NATS[level]) over the row's sum of them, or times its count / n. What is lost, on chat answers with 50 entries a
token: about 6e-4 nats of forward KL between the buckets before and after; of the tail's mass at most 1e-4 (2e-4 where a
row itself holds less than that); of counts nothing.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

VERSION = 2
NUM_LEVELS = 256
LEVELS_PER_NAT = 48  # at p = 1
TAIL_STEP = 2e-4
MAX_DRAWS = 127
ID_BITS, LEVEL_BITS = 24, 8
LEVELS, SYSTEMATIC, INDEPENDENT, DRAWN_LEVELS = range(4)  # kinds
COUNTS = (SYSTEMATIC, INDEPENDENT)
FloatArray = npt.NDArray[np.float32]
IdArray = npt.NDArray[np.int32]
Packed = dict[str, Any]

STREAMS = ("lengths", "codes", "ids_0", "ids_1", "ids_2", "tail_0", "tail_1")
TYPE = pa.struct(
    [
        ("version", pa.int8()),
        ("kind", pa.int8()),
        ("num_tokens", pa.int32()),
        ("width", pa.int32()),
        ("num_draws", pa.int16()),
        *((name, pa.binary()) for name in STREAMS),
    ]
)


def _levels() -> npt.NDArray[np.float64]:
    nats = [0.0]
    while len(nats) < NUM_LEVELS:
        nats.append(nats[-1] + min(1.0, np.exp(nats[-1] / 2) / LEVELS_PER_NAT))
    return np.array(nats)


NATS = _levels()
_BETWEEN = ((NATS[1:] + NATS[:-1]) / 2).astype(np.float32)


def log_tail(logprobs_NK: npt.NDArray[np.floating], vocab_size: int) -> FloatArray:
    """Log of the mass outside each row, nats, shape N: log(1 − Σ exp) in float64; −inf where the row holds it all.

    The rows come from float32 logits, which know a probability near 1 to about 1e-7: a smaller tail is 0 to them.
    """
    mass_N = np.exp(logprobs_NK.astype(np.float64)).sum(axis=1)
    is_whole = logprobs_NK.shape[1] >= vocab_size
    tail_N = np.where((mass_N < 1 - 1e-7) & (not is_whole), 1 - mass_N, 0.0)
    with np.errstate(divide="ignore"):
        return np.log(tail_N).astype(np.float32)


def level_error_nats(logprobs: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """The most by which a level can differ from the log-prob that it stands for, nats, before rows are made to sum."""
    return np.minimum(1.0, np.exp(-np.maximum(logprobs, -NATS[-1]) / 2) / LEVELS_PER_NAT) / 2


def encode(ids_NK: IdArray, logprobs_NK: FloatArray, log_tail_N: FloatArray, kind: int = LEVELS) -> Packed:
    """Pack the log-probs of one response; an entry at −inf is none (rows may differ in length).

    Raises ValueError where the shapes disagree, or a row has no entry.
    """
    is_entry_NK = logprobs_NK > -np.inf
    _check_shapes(ids_NK, logprobs_NK, log_tail_N, is_entry_NK)
    levels_E = np.searchsorted(_BETWEEN, -logprobs_NK[is_entry_NK])
    lengths_N = is_entry_NK.sum(axis=1)
    levels_E, ids_E = _sorted(lengths_N, levels_E, ids_NK[is_entry_NK])
    differences_E = np.diff(levels_E, prepend=0)
    first_E = _starts(lengths_N)
    differences_E[first_E] = levels_E[first_E]
    header = {"version": VERSION, "kind": kind, "num_tokens": len(ids_NK), "num_draws": 0}
    is_even = len(lengths_N) and (lengths_N == lengths_N[0]).all()
    width = int(lengths_N[0]) if is_even else 0
    header |= {"width": width, "lengths": b"" if width else lengths_N.astype("<u2").tobytes()}
    return header | _streams(lengths_N, ids_E, levels_E, differences_E.astype(np.uint8), log_tail_N, width)


def encode_draws(
    ids_NK: IdArray, counts_NK: npt.NDArray[np.integer], log_tail_N: FloatArray, kind: int = SYSTEMATIC
) -> Packed:
    """Pack counts of draws from the K ids, the same number in every row; an id with a count of 0 is not an entry.

    Raises ValueError where the shapes or the numbers of draws disagree.
    """
    is_entry_NK = counts_NK > 0
    _check_shapes(ids_NK, counts_NK, log_tail_N, is_entry_NK)
    num_draws = int(counts_NK[0].sum()) if len(counts_NK) else 1
    if not 1 <= num_draws <= MAX_DRAWS or (counts_NK.sum(axis=1) != num_draws).any():
        raise ValueError(f"each row must have the same number of draws, from 1 to {MAX_DRAWS}")
    lengths_N = is_entry_NK.sum(axis=1)
    ranks_E, ids_E = _sorted(lengths_N, MAX_DRAWS - counts_NK[is_entry_NK], ids_NK[is_entry_NK])
    symbols = _count_symbols(MAX_DRAWS - ranks_E, lengths_N)
    header = {"version": VERSION, "kind": kind, "num_tokens": len(ids_NK), "num_draws": num_draws}
    header |= {"width": ids_NK.shape[1], "lengths": b""}
    return header | _streams(lengths_N, ids_E, ranks_E, symbols, log_tail_N, width=0)


def decode(packed: Packed) -> tuple[IdArray, FloatArray, FloatArray]:
    """`(ids_NK, logprobs_NK, log_tail_N)`, nats; each row and its tail sum to 1. K is the longest row's.

    A shorter row is filled up with its own first id at −inf. Raises ValueError where damaged.
    """
    ids_NK, logprobs_NK, log_tail_N, _ = decode_with_mass(packed)
    return ids_NK, logprobs_NK, log_tail_N


def decode_with_mass(packed: Packed) -> tuple[IdArray, FloatArray, FloatArray, npt.NDArray[np.float64]]:
    """What `decode` gives, and the probability that each row held with its tail as stored, N: 1 but for rounding."""
    lengths_N, ids_E, values_E = _unpack(packed)
    N, K = len(lengths_N), int(lengths_N.max(initial=0))
    tail_N = TAIL_STEP * (_bytes(packed, "tail_0", N) + 256.0 * _bytes(packed, "tail_1", N))
    if tail_N.max(initial=0) > 1 - TAIL_STEP / 2:
        raise ValueError("packed log-probs are damaged: a tail holds all the mass")
    is_entry_NK = np.arange(K) < lengths_N[:, None]
    first_E = _starts(lengths_N)
    ids_NK = np.repeat(ids_E[first_E].astype(np.int32)[:, None], K, axis=1)
    ids_NK[is_entry_NK] = ids_E
    probs_NK = np.zeros((N, K))
    probs_NK[is_entry_NK] = values_E
    mass_N = probs_NK.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        logprobs_NK = np.log(probs_NK * ((1 - tail_N) / mass_N)[:, None])
        log_tail_N = np.log(tail_N)
    total_N = np.ones(N) if packed["kind"] in COUNTS else mass_N + tail_N
    return ids_NK, logprobs_NK.astype(np.float32), log_tail_N.astype(np.float32), total_N


def _check_shapes(ids_NK: IdArray, values_NK: Any, log_tail_N: FloatArray, is_entry_NK: npt.NDArray[np.bool_]) -> None:
    N, K = ids_NK.shape
    if values_NK.shape != (N, K) or log_tail_N.shape != (N,):
        raise ValueError(f"ids {ids_NK.shape}, values {values_NK.shape}, tail {log_tail_N.shape} do not agree")
    if np.isnan(values_NK).any() or np.isnan(log_tail_N).any():
        raise ValueError("a log-prob is not a number")
    if not is_entry_NK.any(axis=1).all():
        raise ValueError("a row has no entry")
    if np.iinfo(np.uint16).max < K:
        raise ValueError(f"rows of {K} entries are too long")
    if ids_NK.size and not 0 <= ids_NK.min() <= ids_NK.max() < 1 << ID_BITS:
        raise ValueError(f"token ids must be from 0 to {(1 << ID_BITS) - 1}")


def _sorted(
    lengths_N: npt.NDArray[np.int64], ranks_E: npt.NDArray[np.integer], ids_E: IdArray
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Entries by (row, rank, id): one sort of integers that hold the three."""
    N = len(lengths_N)
    keys_E = np.repeat(np.arange(N, dtype=np.uint64) << np.uint64(ID_BITS + LEVEL_BITS), lengths_N)
    keys_E |= ranks_E.astype(np.uint64) << np.uint64(ID_BITS)
    keys_E |= ids_E.astype(np.uint64)
    keys_E.sort()
    return ((keys_E >> ID_BITS) & 0xFF).astype(np.int64), (keys_E & 0xFFFFFF).astype(np.int64)


def _starts(lengths_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where each row's entries begin."""
    return np.cumsum(lengths_N) - lengths_N


def _begins_run(lengths_N: npt.NDArray[np.int64], ranks_E: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    """Where an entry is the first of its row, or has another level or count than the one before it."""
    begins_E = np.diff(ranks_E, prepend=-1) != 0
    begins_E[_starts(lengths_N)] = True
    return begins_E


def _streams(
    lengths_N: npt.NDArray[np.int64],
    ids_E: npt.NDArray[np.int64],
    ranks_E: npt.NDArray[np.int64],
    codes: npt.NDArray[np.uint8],
    log_tail_N: FloatArray,
    width: int,
) -> Packed:
    """The byte strings but `lengths`, entry by entry where there is a width."""
    steps_E = np.where(_begins_run(lengths_N, ranks_E), ids_E, np.diff(ids_E, prepend=0))
    if width:
        codes, steps_E = (np.ascontiguousarray(a.reshape(-1, width).T).reshape(-1) for a in (codes, steps_E))
    # never 1: what a row holds, however little, has a share to be made to sum to
    tail_N = np.minimum(np.round(np.exp(log_tail_N.astype(np.float64)) / TAIL_STEP), 1 / TAIL_STEP - 1).astype("<u2")
    highest_E = (steps_E >> 16).astype(np.uint8)
    return {
        "codes": codes.tobytes(),
        "ids_0": steps_E.astype(np.uint8).tobytes(),
        "ids_1": (steps_E >> 8).astype(np.uint8).tobytes(),
        "ids_2": highest_E.tobytes() if highest_E.any() else b"",
        "tail_0": tail_N.astype(np.uint8).tobytes(),
        "tail_1": (tail_N >> 8).astype(np.uint8).tobytes(),
    }


def _unpack(
    packed: Any,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """`(lengths_N, ids_E, values_E)`: entries per row, and each entry's id and probability (or share of the draws).

    Raises ValueError where damaged.
    """
    if not isinstance(packed, dict) or packed.get("version") != VERSION:
        raise ValueError(f"not packed log-probs of version {VERSION}; generate them again")
    if packed["kind"] not in (LEVELS, DRAWN_LEVELS, *COUNTS):
        raise ValueError(f"packed log-probs are damaged: there is no kind {packed['kind']}")
    N, width = packed["num_tokens"], packed["width"]
    if packed["kind"] in COUNTS:
        num_draws, width = packed["num_draws"], 0  # row by row
        lengths_N, counts_E = _counts(np.frombuffer(packed["codes"], np.uint8).astype(np.int64), N, num_draws)
        ranks_E, values_E = MAX_DRAWS - counts_E, counts_E / num_draws
    else:
        lengths_N = np.full(N, width) if width else _bytes(packed, "lengths", 2 * N).view("<u2").astype(np.int64)
        ranks_E = _running(_by_row(_bytes(packed, "codes", int(lengths_N.sum())), width), _starts(lengths_N))
        if ranks_E.max(initial=0) >= NUM_LEVELS:
            raise ValueError("packed log-probs are damaged: a level is out of range")
        values_E = np.exp(-NATS[ranks_E])
    E = int(lengths_N.sum())
    if N and lengths_N.min() < 1:
        raise ValueError("packed log-probs are damaged: a row has no entry")
    steps_E = np.zeros(E, np.int64)
    for byte in range(3 if packed["ids_2"] else 2):
        steps_E |= _bytes(packed, f"ids_{byte}", E).astype(np.int64) << (8 * byte)
    ids_E = _running(_by_row(steps_E, width), np.flatnonzero(_begins_run(lengths_N, ranks_E)))
    if ids_E.max(initial=0) >= 1 << ID_BITS:
        raise ValueError("packed log-probs are damaged: an id is out of range")
    return lengths_N, ids_E, values_E


def _bytes(packed: Packed, name: str, size: int) -> npt.NDArray[np.uint8]:
    if len(packed[name]) != size:
        raise ValueError(f"packed log-probs are damaged: {name} has {len(packed[name])} bytes, not {size}")
    return np.frombuffer(packed[name], np.uint8)


def _by_row(values_E: npt.NDArray[np.integer], width: int) -> npt.NDArray[np.int64]:
    """Entries row by row, where they are stored entry by entry."""
    return (values_E.reshape(width, -1).T.reshape(-1) if width else values_E).astype(np.int64)


def _running(steps_E: npt.NDArray[np.int64], starts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Sums of the steps up to each place, begun anew at each start."""
    if not len(steps_E):
        return steps_E
    sums_E = np.cumsum(steps_E)
    before = sums_E[starts] - steps_E[starts]
    return sums_E - np.repeat(before, np.diff(starts, append=len(steps_E)))


def _count_symbols(counts_E: npt.NDArray[np.int64], lengths_N: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """2·count + last for the counts of 2 or more of each row; the one symbol 1 for a row without any."""
    N = len(lengths_N)
    row_E = np.repeat(np.arange(N), lengths_N)
    row_M, counts_M = row_E[counts_E > 1], counts_E[counts_E > 1]
    bare = np.flatnonzero(np.bincount(row_M, minlength=N) == 0)
    rows = np.concatenate([row_M, bare])
    order = np.argsort(rows, kind="stable")
    rows, symbols = rows[order], np.concatenate([2 * counts_M, np.zeros(len(bare), np.int64)])[order]
    return (symbols + (np.diff(rows, append=N) != 0)).astype(np.uint8)


def _counts(
    symbols: npt.NDArray[np.int64], N: int, num_draws: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """`(lengths_N, counts_E)` of the symbols. Raises ValueError where they do not make N rows of `num_draws`."""
    ends = np.flatnonzero(symbols & 1)
    counts = symbols >> 1
    if len(ends) != N or (N and ends[-1] != len(symbols) - 1):
        raise ValueError(f"packed log-probs are damaged: counts of {len(ends)} rows, not {N}")
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)[:N]
    num_ones_N = num_draws - (np.add.reduceat(counts, starts) if N else counts)
    if (num_ones_N < 0).any():
        raise ValueError("packed log-probs are damaged: a row has more than all draws")
    num_more_N = np.where(counts[starts] > 0, ends - starts + 1, 0)
    lengths_N = num_more_N + num_ones_N
    counts_E = np.ones(int(lengths_N.sum()), np.int64)
    place_E = np.arange(len(counts_E)) - np.repeat(_starts(lengths_N), lengths_N)
    counts_E[place_E < np.repeat(num_more_N, lengths_N)] = counts[counts > 0]
    return lengths_N, counts_E
