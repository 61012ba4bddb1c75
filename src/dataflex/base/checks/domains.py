"""What `dataflex.domains` names outside the configuration: files, and a text encoder. Their contents count, not their places."""

from __future__ import annotations

from pathlib import Path

from dataflex.base.checks.contents import digest, model_digest
from dataflex.config.schema import DomainsKeys
from dataflex.values.paths import is_folder


def contents_of(domains: DomainsKeys) -> dict[str, str]:
    """A hash of what is there, by key. Clusters that are kept at `path` follow from the rest."""
    out = {}
    if domains.by == "file" and domains.path is not None:
        out["path"] = digest(Path(domains.path))
    if domains.embedding_model is not None and (found := model_digest(Path(domains.embedding_model))) is not None:
        out["embedding_model"] = found
    return out


def elsewhere(domains: DomainsKeys) -> tuple[str, ...]:
    """The keys that say where something is."""
    encoder = domains.embedding_model
    return ("path", "embedding_model") if encoder is not None and is_folder(encoder) else ("path",)
