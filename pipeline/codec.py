"""The packed log-probs of one response: top-K support and the mass of everything else, per token.

Layout, version 1, little endian; N = tokens of the response, K = entries per token:

    offset  size      field
    0       4         magic "RTL1"
    4       4         N, uint32
    8       4         K, uint32
    12      4         W, uint32: bytes per token id, 2 or 4
    16      N·K·W     token ids, row-major, best first within a row, stored as W planes (all low bytes, then the next)
    ..      N·K·2     log-probs, float16, nats, in the order of the ids, stored as 2 planes
    ..      N·4       log of the mass outside the row's ids, float32, nats; −inf where there is none

Byte planes put like next to like, so that Parquet's zstd finds the repetition. float16 keeps a log-prob to 2⁻¹¹ of
itself; `decode` gives rows renormalised with their tail, so each sums to exactly 1: forward KL between what went in
and what comes out is about 1e-6 nats.
"""

import struct

import numpy as np
import numpy.typing as npt

MAGIC = b"RTL1"
HEADER = struct.Struct("<4sIII")
FloatArray = npt.NDArray[np.float32]
IdArray = npt.NDArray[np.int32]


def log_tail(logprobs_NK: npt.NDArray[np.floating], vocab_size: int) -> FloatArray:
    """Log of the mass outside each row, nats, shape N: log(1 − Σ exp) in float64; −inf where the row holds it all.

    The rows come from float32 logits, which know a probability near 1 to about 1e-7: a smaller tail is 0 to them.
    """
    mass_N = np.exp(logprobs_NK.astype(np.float64)).sum(axis=1)
    is_whole = logprobs_NK.shape[1] >= vocab_size
    tail_N = np.where((mass_N < 1 - 1e-7) & (not is_whole), 1 - mass_N, 0.0)
    with np.errstate(divide="ignore"):
        return np.log(tail_N).astype(np.float32)


def encode(ids_NK: IdArray, logprobs_NK: FloatArray, log_tail_N: FloatArray) -> bytes:
    """Pack the rows of one response. Raises ValueError where the shapes disagree."""
    N, K = ids_NK.shape
    if logprobs_NK.shape != (N, K) or log_tail_N.shape != (N,):
        raise ValueError(f"ids {ids_NK.shape}, log-probs {logprobs_NK.shape}, tail {log_tail_N.shape} do not agree")
    width = 2 if ids_NK.size == 0 or ids_NK.max() < 1 << 16 else 4
    ids = ids_NK.astype(f"<u{width}")
    # The lowest float16 is −65504: a lower log-prob is no mass at all, either way.
    halves = np.maximum(logprobs_NK, -65504).astype("<f2")
    header = HEADER.pack(MAGIC, N, K, width)
    return header + _planes(ids) + _planes(halves) + log_tail_N.astype("<f4").tobytes()


def decode(packed: bytes) -> tuple[IdArray, FloatArray, FloatArray]:
    """`(ids_NK, logprobs_NK, log_tail_N)`, nats; each row and its tail sum to 1. Raises ValueError where damaged."""
    ids_NK, logprobs_NK, log_tail_N, _ = decode_with_mass(packed)
    return ids_NK, logprobs_NK, log_tail_N


def decode_with_mass(packed: bytes) -> tuple[IdArray, FloatArray, FloatArray, npt.NDArray[np.float64]]:
    """What `decode` gives, and the probability that each row held with its tail as stored, N: 1 but for float16."""
    ids_NK, logprobs_NK, log_tail_N = _unpack(packed)
    mass_N = np.exp(logprobs_NK).sum(axis=1) + np.exp(log_tail_N)
    with np.errstate(divide="ignore"):
        total_N = np.log(mass_N)
    return (
        ids_NK,
        (logprobs_NK - total_N[:, None]).astype(np.float32),
        (log_tail_N - total_N).astype(np.float32),
        mass_N,
    )


def _unpack(packed: bytes) -> tuple[IdArray, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """What `encode` was given, rounded as it is stored. Raises ValueError where damaged."""
    if len(packed) < HEADER.size or packed[:4] != MAGIC:
        raise ValueError("not packed log-probs (no RTL1 header)")
    _, N, K, width = HEADER.unpack_from(packed)
    if width not in (2, 4) or len(packed) != HEADER.size + N * K * (width + 2) + N * 4:
        raise ValueError(f"packed log-probs of {N}×{K} have {len(packed)} bytes")
    ids_end = HEADER.size + N * K * width
    halves_end = ids_end + N * K * 2
    ids_NK = _from_planes(packed[HEADER.size : ids_end], f"<u{width}", (N, K)).astype(np.int32)
    logprobs_NK = _from_planes(packed[ids_end:halves_end], "<f2", (N, K)).astype(np.float64)
    return ids_NK, logprobs_NK, np.frombuffer(packed[halves_end:], "<f4").astype(np.float64)


def _planes(values: npt.NDArray[np.generic]) -> bytes:
    size = values.dtype.itemsize
    return np.ascontiguousarray(values.reshape(-1).view(np.uint8).reshape(-1, size).T).tobytes()


def _from_planes(data: bytes, dtype: str, shape: tuple[int, int]) -> npt.NDArray[np.generic]:
    size = np.dtype(dtype).itemsize
    planes = np.frombuffer(data, np.uint8).reshape(size, -1)
    return np.ascontiguousarray(planes.T).view(dtype).reshape(shape)
