"""The paper that all shapes are from."""

from dataflex.components.paper import Paper

ORGANIZATION = Paper(
    authors="Dai et al.", title="Demystifying Data Organization for Enhanced LLM Training", arxiv="2605.30334"
)
