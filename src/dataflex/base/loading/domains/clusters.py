"""Domains of rows by what they say: clusters of the vectors of a text encoder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from dataflex.base.checks.contents import model_digest
from dataflex.base.loading.domains.cluster_file import Clusters, clusters_of_run, keep_clusters, saved_clusters
from dataflex.base.loading.domains.labels import Labels
from dataflex.base.loading_arguments import Loading
from dataflex.components.tools.clustering import centres_of, cluster_names, nearest_centre
from dataflex.components.tools.embeddings import unit
from dataflex.config.refusals import domains as refused
from dataflex.config.schema import DomainsKeys
from dataflex.data.origins import stored_numbers
from dataflex.data.texts import joined
from dataflex.distributed.collectives import decide, ranks
from dataflex.errors import DataflexError
from dataflex.notices import say
from dataflex.signals.embeddings import encoded_texts, load_encoder
from dataflex.signals.isolation import generators_kept
from dataflex.signals.passing import passing

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32, Int64

_MESSAGES = ("_prompt", "_response")
# Rows that centres are made from: all up to so many, or so many for each centre, which faiss takes as well.
_LEAST, _FOR_EACH = 20_000, 256
_AT_ONCE = 16_384  # texts of a rank that are encoded before the next ones are read
_CHARACTERS = 2_000  # of a text, in which words are counted


def labels_of_clusters(
    aligned: Mapping[str, Any],
    stored: Mapping[str, Any],
    met: Mapping[str, Bool[np.ndarray, " rows"]],
    spec: DomainsKeys,
    loading: Loading,
) -> dict[str, Labels]:
    """The cluster of each row, by data set. Saved clusters of the same rows are used again. Called on every rank.

    Raises ConfigError for fewer rows than clusters, and for an encoder that cannot be loaded.

    Args:
        aligned: Rows in LLaMA-Factory's own columns, Hugging Face `Dataset`s.
        stored: The same rows as they are stored.
        met: Which rows meet the conditions; others are in no cluster.
    """
    made_of = decide(lambda: _made_of(aligned, met, spec))
    found = decide(lambda: saved_clusters(loading, spec, made_of))
    if found is None:
        found = _made(_Texts(aligned, met), made_of, spec, loading)
    keep_clusters(loading, spec, found, {name: stored_numbers(rows) for name, rows in stored.items()})
    return {name: Labels(codes, found.names) for name, codes in found.codes.items()}


def labels_near_clusters(aligned: Mapping[str, Any], spec: DomainsKeys, loading: Loading) -> dict[str, Labels]:
    """The cluster of the run that is nearest to each row, by data set. Called on every rank."""
    found = decide(lambda: clusters_of_run(loading, spec))
    if found is None:
        raise refused.NO_CLUSTERS.error()
    texts = _Texts(aligned, {name: np.ones(len(rows), dtype=bool) for name, rows in aligned.items()})
    codes = texts.by_data_set(_nearest(texts, found.centres, spec, loading))
    return {name: Labels(own, found.names) for name, own in codes.items()}


def _made_of(aligned: Mapping[str, Any], met: Mapping[str, np.ndarray], spec: DomainsKeys) -> dict[str, Any]:
    assert spec.embedding_model is not None
    rows = {name: _digest(data, met[name]) for name, data in aligned.items()}
    encoder = model_digest(Path(spec.embedding_model)) or spec.embedding_model
    return {"k": spec.k, "seed": spec.seed, "encoder": encoder, "rows": rows}


def _made(texts: _Texts, made_of: Mapping[str, Any], spec: DomainsKeys, loading: Loading) -> Clusters:
    assert spec.k is not None
    if len(texts) < spec.k:
        raise refused.FEW_ROWS.error(k=spec.k, rows=len(texts))
    begin = time.perf_counter()
    drawn = np.arange(len(texts))
    if len(texts) > (most := max(_LEAST, _FOR_EACH * spec.k)):
        drawn = np.sort(np.random.default_rng(spec.seed).choice(len(texts), most, replace=False, shuffle=False))
    vectors = _encoded(texts, drawn, spec, loading)
    count, seed = spec.k, spec.seed

    def centres_and_names() -> tuple[np.ndarray, tuple[str, ...]]:
        centres, codes = centres_of(vectors, count, seed)
        said = [texts[int(i)][:_CHARACTERS] for i in drawn]
        return centres, cluster_names(said, codes, len(centres))

    centres, names = decide(centres_and_names)
    if len(drawn) == len(texts):
        codes = decide(lambda: nearest_centre(vectors, centres))
    else:
        codes = _nearest(texts, centres, spec, loading)
    seconds = time.perf_counter() - begin
    say(f"dataflex.domains: {len(names)} clusters of {len(texts):,} rows were made, in {seconds:.1f} s")
    return Clusters(made_of, names, centres, texts.by_data_set(codes))


def _nearest(texts: _Texts, centres: np.ndarray, spec: DomainsKeys, loading: Loading) -> np.ndarray:
    """The nearest centre of each text, int32[n]. Of vectors, those of one piece are in memory at a time."""
    out, size = np.empty(len(texts), dtype=np.int32), _AT_ONCE * ranks()
    with passing("clusters of texts", len(texts), unit="texts") as under_way:
        for start in range(0, len(texts), size):
            piece = np.arange(start, min(start + size, len(texts)))
            vectors = _encoded(texts, piece, spec, loading)
            out[piece] = decide(lambda: nearest_centre(vectors, centres))  # noqa: B023  (called at once)
            under_way.advance(0)
    return out


def _encoded(
    texts: _Texts, indices: Int64[np.ndarray, " some"], spec: DomainsKeys, loading: Loading
) -> Float32[np.ndarray, "some dims"]:
    """Vectors of some texts, of length one; equal on every rank. Random generators are left as they are."""
    device, found, size = loading.training_args.device, [], _AT_ONCE * ranks()
    assert spec.embedding_model is not None
    with generators_kept(), passing("embeddings of texts", len(indices), unit="texts") as under_way:
        try:
            encoder = load_encoder(spec.embedding_model, device)
        except DataflexError as error:
            raise refused.NO_ENCODER.error(why=str(error).removeprefix("embedding_model: ")) from error
        for start in range(0, len(indices), size):
            piece = indices[start : start + size]
            found.append(unit(encoded_texts(encoder, len(piece), lambda i, piece=piece: texts[int(piece[i])], device)))  # type: ignore[misc]
            under_way.advance(len(piece))
    return np.concatenate(found)


class _Texts:
    """What the rows of data sets say that meet the conditions, one data set after the other."""

    def __init__(self, aligned: Mapping[str, Any], met: Mapping[str, Bool[np.ndarray, " rows"]]) -> None:
        self._met = met
        self._rows = [data.select_columns(list(_MESSAGES)) for data in aligned.values()]
        self._indices = [np.flatnonzero(met[name]) for name in aligned]
        self._ends = np.cumsum([len(indices) for indices in self._indices])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> str:
        part = int(np.searchsorted(self._ends, index, side="right"))
        row = self._rows[part][int(self._indices[part][index - self._ends[part]])]  # counted from the end of the part
        return joined([message for column in _MESSAGES for message in row[column] or []])

    def by_data_set(self, codes: np.ndarray) -> dict[str, np.ndarray]:
        """Of each row that was read its code, int32[n]; -1: it meets a condition not."""
        out = {name: np.full(len(met), -1, dtype=np.int32) for name, met in self._met.items()}
        for name, own in zip(out, np.split(codes, self._ends[:-1]), strict=True):
            out[name][self._met[name]] = own
        return out


def _digest(aligned: Any, met: Bool[np.ndarray, " rows"]) -> str:
    """Of what rows say, and which of them meet the conditions; equal however the rows are cut into chunks."""
    rows, lengths, texts = xxhash.xxh3_128(), xxhash.xxh3_128(), xxhash.xxh3_128()
    for column in _MESSAGES:
        for chunk in aligned.data.column(column).chunks:
            rows.update(np.asarray(pc.list_value_length(chunk).fill_null(0), dtype=np.int32).tobytes())
            flat = pc.list_flatten(chunk)
            if not len(flat) or pa.types.is_null(flat.type):
                continue
            said = pc.struct_field(flat, ["content"]).cast(pa.large_string()).fill_null("")
            lengths.update(np.asarray(pc.binary_length(said), dtype=np.int64).tobytes())
            _, offsets, data = said.buffers()
            ends = np.frombuffer(offsets, dtype=np.int64)[said.offset : said.offset + len(said) + 1]
            texts.update(memoryview(data)[int(ends[0]) : int(ends[-1])] if data is not None else b"")
    if aligned._indices is not None:
        rows.update(aligned._indices.column(0).to_numpy().tobytes())
    rows.update(met.tobytes())
    return rows.hexdigest() + lengths.hexdigest() + texts.hexdigest()
