"""Build a codebook of redundant tokens for one model: calibration data of the `codebook` method.

Source: "Beyond Intermediate States" (arXiv 2503.20540), offline stage.  A token is redundant when the model
sees nothing in it alone and misses nothing without it; prototypes are redundant tokens that look alike in
many pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pruneopt.errors import InputError
from pruneopt.parts.steps.recycle_clusters import density_noise, density_peaks

Probe = Callable[[Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class Thresholds:
    """Settings of the offline stage; the defaults are those of LLaVA-1.5.

    Parameters
    ----------
    alone
        Largest probability that a token fed alone may raise.
    change
        Largest local plus 16 times global divergence when it is left out.
    crowd
        Largest cluster of its picture that it may lie in.
    clusters
        Clusters of the pool.
    pictures
        Pictures that a cluster must come from more than.
    repeats
        How often a token fed alone is repeated.
    per_picture
        Clusters of one picture.
    """

    alone: float = 0.15
    change: float = 2e-3
    crowd: int = 8
    clusters: int = 64
    pictures: int = 64
    repeats: int = 1
    per_picture: int = 8


def build_codebook(
    pictures: Sequence[Tensor], columns: int, *, probe: Probe, pad: Tensor, settings: Thresholds | None = None
) -> Tensor:
    """Prototypes of redundant tokens.

    Parameters
    ----------
    pictures
        Projected tokens `[N,D]` of calibration pictures.
    columns
        Columns of their grid.
    probe
        First-token logits `[len,V]` of a prompt whose picture is replaced by each of the given sequences.
    pad
        Embedding `[D]` of the padding token, which stands for what is left out.
    settings
        Thresholds; None takes the defaults.

    Returns
    -------
    Tensor
        `[P,D]` float32.

    Raises
    ------
    InputError
        When nothing is redundant by these settings.
    """
    settings = settings or Thresholds()
    # First what is redundant within each picture, then what of it looks alike in many of them.
    pool, owner = [], []
    for number, tokens in enumerate(pictures):
        flags = redundant(tokens, columns, probe=probe, pad=pad, settings=settings)
        flags &= in_small_clusters(tokens, settings.per_picture, crowd=settings.crowd)
        pool.append(tokens[flags].float())
        owner += [number] * int(flags.sum())
    rows = torch.cat(pool) if pool else torch.zeros(0, 1)
    if not len(rows):
        raise InputError("no token is redundant by these thresholds; loosen `alone`, `change` or `crowd`")
    home = clusters_of(rows, settings.clusters)
    owners = torch.tensor(owner)
    keep = torch.zeros(len(rows), dtype=torch.bool)
    for cluster in home.unique():
        members = home == cluster
        if len(owners[members].unique()) > settings.pictures:
            keep |= members
    if not keep.any():
        raise InputError(f"no cluster comes from more than {settings.pictures} pictures; give more pictures")
    return rows[keep]


def redundant(tokens: Tensor, columns: int, *, probe: Probe, pad: Tensor, settings: Thresholds) -> Tensor:
    """`[N]` bool: seen nothing in alone, missed nothing without."""
    alone = probe([row.expand(settings.repeats, -1) for row in tokens])
    sure = alone.float().topk(min(50, alone.shape[1]), dim=1).values.softmax(1).amax(1)
    around, pad = neighbourhoods(len(tokens), columns), pad.to(tokens.dtype)
    near = [tokens[block] for block in around]
    without = [tokens[block].where((block != number)[:, None], pad) for number, block in enumerate(around)]
    local = divergence(probe(near), probe(without))
    holes = [tokens.index_put((block,), pad) for block in around]
    whole = probe([tokens]).expand(len(holes), -1)
    change = local + 16 * divergence(whole, probe(holes))
    return (sure < settings.alone) & (change < settings.change)


def neighbourhoods(tokens: int, columns: int) -> Tensor:
    """`[N,9]` indices of the 3 x 3 block around every token, shifted inwards at the borders."""
    rows = tokens // columns
    if rows < 3 or columns < 3 or rows * columns != tokens:
        raise InputError(f"{tokens} tokens in {columns} columns are no grid of at least 3 x 3")
    cell = torch.arange(tokens)
    x = (cell % columns).clamp(1, columns - 2)
    y = (cell // columns).clamp(1, rows - 2)
    step = torch.arange(-1, 2)
    block = (y[:, None, None] + step[:, None]) * columns + x[:, None, None] + step[None, :]
    return block.flatten(1)


def divergence(reference: Tensor, other: Tensor) -> Tensor:
    """Jensen-Shannon divergence over the ten best entries of `reference`, averaged over them, `[B]`."""
    best = reference.float().topk(min(10, reference.shape[1]), dim=1).indices
    p, q = (logits.float().gather(1, best).softmax(1) for logits in (reference, other))
    middle = (p + q) / 2
    terms = 0.5 * (p * (p / middle).log() + q * (q / middle).log())
    return terms.nan_to_num(0.0).mean(1).clamp_min(0)


def clusters_of(rows: Tensor, clusters: int) -> Tensor:
    """`[N]` density-peak cluster of each row, named by its centre."""
    count = min(clusters, len(rows))
    valid = torch.ones(1, len(rows), dtype=torch.bool)
    noise = 1e-6 * density_noise(0, len(rows))
    _, home = density_peaks(
        rows[None].float(), valid, clusters=torch.tensor([count]), noise=noise, cosine=False
    )
    return home[0]


def in_small_clusters(tokens: Tensor, clusters: int, *, crowd: int) -> Tensor:
    """`[N]` bool: tokens whose cluster in their own picture has at most `crowd` members."""
    home = clusters_of(tokens, clusters)
    return torch.bincount(home, minlength=len(tokens))[home] <= crowd


def save_codebook(path: Path, prototypes: Tensor, *, provenance: Mapping[str, Any]) -> str:
    """Write a codebook file with its provenance.

    Parameters
    ----------
    path
        Of the safetensors file; its folder is made.
    prototypes
        `[P,D]`.
    provenance
        What the file says about its origin, see `provenance`.

    Returns
    -------
    str
        The SHA-256 that a spec can pin.
    """
    from safetensors.torch import save

    notes = {key: str(value) for key, value in provenance.items()}
    blob = save({"prototypes": prototypes.float().contiguous()}, metadata=notes)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(blob)
    return hashlib.sha256(blob).hexdigest()


def live_probe(model: Any, input_ids: Tensor, *, image_token: int, batch: int = 16) -> Probe:
    """First-token logits of a LLaVA-like model when its picture is replaced by a sequence of vectors.

    Parameters
    ----------
    model
        The model.
    input_ids
        `[L]`, a prompt with placeholders; text before and after them stays.
    image_token
        The placeholder.
    batch
        Sequences in one forward pass.

    Returns
    -------
    callable
        For `probe` of `build_codebook`.

    Raises
    ------
    InputError
        For a prompt without a placeholder.
    """
    place = (input_ids == image_token).nonzero().squeeze(1)
    if not len(place):
        raise InputError("the prompt has no picture placeholder to replace")
    table = model.get_input_embeddings()
    head, tail = input_ids[: place[0]], input_ids[place[-1] + 1 :]
    before, after = table(head).detach(), table(tail).detach()

    def probe(sequences: Sequence[Tensor]) -> Tensor:
        out: list[Tensor] = []
        # Padded on the left, so that the last column is the one that predicts in every row.
        for start in range(0, len(sequences), batch):
            rows = [torch.cat([before, s.to(before.dtype), after]) for s in sequences[start : start + batch]]
            real = [torch.ones(len(row), dtype=torch.int64) for row in rows]
            embeds, mask = (pad_sequence(x, batch_first=True, padding_side="left") for x in (rows, real))
            with torch.no_grad():
                out.append(model(inputs_embeds=embeds, attention_mask=mask).logits[:, -1].float())
        return torch.cat(out)

    return probe


def provenance(model: str, pictures: int, *, settings: Thresholds) -> dict[str, Any]:
    """What a codebook file says about its origin."""
    return {"model": model, "calibration_pictures": pictures, **asdict(settings)}
