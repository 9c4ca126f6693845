"""One small manifest of every kind, for the reference pages; together they are a pipeline."""

from typing import Any

from herdsman.api.meta import API_VERSION


def _manifest(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


EXAMPLES: dict[str, dict[str, Any]] = {
    manifest["kind"]: manifest
    for manifest in (
        _manifest("ModelImport", "llama-7b", {"source": {"volume": {"claim": "models", "path": "llama-7b"}}}),
        _manifest(
            "TokenizerMerge",
            "zh-tokenizer",
            {
                "base": {"modelImport": "llama-7b"},
                "sources": [{"volume": {"claim": "tokenizers", "path": "chinese_sp.model"}}],
            },
        ),
        _manifest(
            "PretrainJob",
            "zh-pretrain",
            {
                "model": {"modelImport": "llama-7b"},
                "tokenizer": {"tokenizerMerge": "zh-tokenizer"},
                "dataset": {"volume": {"claim": "corpora", "path": "zh"}},
                "stage": "LoRA",
                "recipe": {"preset": "chinese-llama-v1", "maxSteps": 6000},
                "compute": {"nodes": 2, "gpusPerNode": 8},
                "workspace": {"size": "200Gi", "accessMode": "ReadWriteMany"},
            },
        ),
        _manifest(
            "InstructionSet",
            "zh-records",
            {
                "language": "zh",
                "sources": [
                    {"dataset": {"volume": {"claim": "corpora", "path": "alpaca_zh.json"}}, "format": "Alpaca"},
                    {"dataset": {"volume": {"claim": "corpora", "path": "chats"}}, "conversations": "FirstTurn"},
                ],
                "generate": {
                    "endpoint": {
                        "url": "https://api.example.com/v1",
                        "model": "teacher",
                        "apiKey": {"name": "teacher", "key": "key"},
                    },
                    "records": 2000,
                    "limits": {"parallel": 4, "requestsPerMinute": 60},
                    "budget": {"tokens": 4000000},
                },
                "heldOutFraction": 0.02,
            },
        ),
        _manifest(
            "SFTJob",
            "zh-instructions",
            {
                "model": {"modelImport": "llama-7b"},
                "adapter": {"pretrainJob": "zh-pretrain"},
                "dataset": {"instructionSet": "zh-records"},
                "recipe": {"preset": "chinese-llama-v1", "template": "alpaca", "epochs": 2},
                "compute": {"gpusPerNode": 8},
            },
        ),
        _manifest(
            "LoRAMerge",
            "zh-llama",
            {
                "model": {"modelImport": "llama-7b"},
                "adapters": [{"pretrainJob": "zh-pretrain"}, {"sftJob": "zh-instructions"}],
                "dtype": "bfloat16",
            },
        ),
        _manifest(
            "Evaluation",
            "zh-quality",
            {
                "models": [
                    {"name": "before", "model": {"modelImport": "llama-7b"}},
                    {"name": "after", "model": {"loraMerge": "zh-llama"}},
                ],
                "tasks": [
                    {
                        "name": "text",
                        "perplexity": {
                            "dataset": {"volume": {"claim": "corpora", "path": "zh"}},
                            "heldOutFraction": 0.001,
                        },
                    },
                    {
                        "name": "ceval",
                        "multipleChoice": {"dataset": {"volume": {"claim": "ceval"}}, "withTemplate": True},
                    },
                ],
                "thresholds": [
                    {"task": "ceval", "metric": "accuracy", "model": "after", "over": "before", "atLeast": 0.05},
                ],
                "compute": {"gpusPerNode": 1},
            },
        ),
        _manifest(
            "ModelServer",
            "zh-llama",
            {
                "model": {"loraMerge": "zh-llama"},
                "after": [{"evaluation": "zh-quality"}],
                "replicas": 2,
                "compute": {"gpusPerNode": 1},
            },
        ),
    )
}
"""The example of each kind."""
