"""Imported once by the parent of all test runs: everything a run would import on its way."""

import gc

import datasets.formatting.torch_formatter
import deepspeed
import llamafactory.train.dpo.trainer
import llamafactory.train.kto.trainer
import llamafactory.train.tuner
import scipy.io
import torchdata.stateful_dataloader
import torchvision
import transformers.data.data_collator
import transformers.models.auto.modeling_auto
import transformers.models.qwen2.modeling_qwen2
import transformers.models.qwen2.tokenization_qwen2
import transformers.trainer_seq2seq
import trl

import dataflex.base.commands.callbacks
import dataflex.base.commands.train
import dataflex.base.launching.launch
import dataflex.base.loading.data
import dataflex.base.loading.streams
import dataflex.trainer

# To find out what kind of model it is given, LLaMA-Factory asks for all configurations of these kinds.
for kind in (
    transformers.AutoModelForImageTextToText,
    transformers.AutoModelForSeq2SeqLM,
    transformers.AutoModelForTextToWaveform,
):
    kind._model_mapping.keys()
gc.collect()
gc.freeze()  # a collection in a run need not go through all of this again
