"""What LLaMA-Factory loads data with."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Loading:
    """The arguments of LLaMA-Factory's `get_dataset`, in its order."""

    template: Any
    model_args: Any
    data_args: Any
    training_args: Any
    stage: str
    """As its loaders know it: rm for dpo, too."""
    tokenizer: Any
    processor: Any = None

    def indexed(self) -> Loading:
        """The same, with data that is read whole."""
        if not self.data_args.streaming:
            return self
        data_args = copy.copy(self.data_args)
        data_args.streaming = False
        return replace(self, data_args=data_args)

    def single_rows(self, *, texts: bool = False) -> Loading:
        """The same, with every row an example by itself, with its answer; this object where that is so already.

        Packed text of pre-training stays packed unless `texts` is set: its rows are no examples.
        """
        data_args, training_args = copy.copy(self.data_args), copy.copy(self.training_args)
        packs = (texts or self.stage != "pt") and (data_args.packing or data_args.neat_packing)
        if not packs and not getattr(training_args, "predict_with_generate", False):
            return self
        if packs:
            data_args.packing = data_args.neat_packing = False
        training_args.predict_with_generate = False
        return replace(self, data_args=data_args, training_args=training_args)

    def first_process(self, purpose: str) -> AbstractContextManager[None]:
        """Inside, the first process works before the others, which find what it has put into the cache."""
        local = not self.data_args.data_shared_file_system
        return self.training_args.main_process_first(desc=purpose, local=local)  # type: ignore[no-any-return]
