"""Multi-head latent attention, written out entry by entry from the formulas of PLM (arXiv 2503.12167), section 2.

Slow on purpose, and independent of ``disttrain``: one token, one head and one pair of entries at a time.
"""

import math

import torch


def rms_norm(x, weight, epsilon=1e-6):
    """x · weight / √(mean(x²) + ε) of a vector."""
    return weight * x / math.sqrt(sum(float(entry) ** 2 for entry in x) / len(x) + epsilon)


def turn(x, position, base):
    """Turn the interleaved pairs (x[2i], x[2i + 1]) by position · base^(−2i / width)."""
    turned = torch.empty_like(x)
    for i in range(len(x) // 2):
        angle = position * base ** (-2 * i / len(x))
        cosine, sine = math.cos(angle), math.sin(angle)
        turned[2 * i] = x[2 * i] * cosine - x[2 * i + 1] * sine
        turned[2 * i + 1] = x[2 * i] * sine + x[2 * i + 1] * cosine
    return turned


def latent_attention(x, W_Q, W_DKV, norm, W_UKV, W_O, *, heads, kv_rank, nope, rope, value, base):
    """Outputs ``[time, width]`` of a sequence of tokens ``[time, width]``, in the precision of its arguments."""
    keys, values = [], []  # per token, per head
    outputs = []
    for t, x_t in enumerate(x):
        compressed = W_DKV @ x_t
        latent, key_rope = compressed[:kv_rank], turn(compressed[kv_rank:], t, base)
        expanded = (W_UKV @ rms_norm(latent, norm)).reshape(heads, nope + value)
        keys.append([torch.cat([expanded[i, :nope], key_rope]) for i in range(heads)])
        values.append([expanded[i, nope:] for i in range(heads)])
        queries = (W_Q @ x_t).reshape(heads, nope + rope)
        mixed = []
        for i in range(heads):
            query = torch.cat([queries[i, :nope], turn(queries[i, nope:], t, base)])
            scores = [float(query @ keys[j][i]) / math.sqrt(nope + rope) for j in range(t + 1)]
            weights = [math.exp(score - max(scores)) for score in scores]
            mixed.append(sum(w / sum(weights) * values[j][i] for j, w in enumerate(weights)))
        outputs.append(W_O @ torch.cat(mixed))
    return torch.stack(outputs)
