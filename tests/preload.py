"""Imported once by the parent of all test runs: everything a run would import on its way."""

import datasets.formatting.torch_formatter
import llamafactory.train.dpo.trainer
import llamafactory.train.kto.trainer
import llamafactory.train.tuner
import torchvision
import transformers.data.data_collator
import transformers.models.auto.modeling_auto
import transformers.models.qwen2.modeling_qwen2
import transformers.models.qwen2.tokenization_qwen2
import transformers.trainer_seq2seq
import trl

import dataflex.base.callbacks
import dataflex.base.data
import dataflex.base.launch
import dataflex.base.streams
import dataflex.base.train
import dataflex.trainer
