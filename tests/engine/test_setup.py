"""What set-up made is whole: the environment imports, and vLLM answers with the tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path

ANSWER = """
import json, sys
from vllm import LLM, SamplingParams

llm = LLM(model=sys.argv[1], dtype="float32", enforce_eager=True, max_model_len=2048)
greedy = SamplingParams(temperature=0, max_tokens=200)
chat = [{"role": "user", "content": "hello, how are you?"}]
first = llm.chat([chat], greedy)[0].outputs[0]
second = llm.chat([chat], greedy)[0].outputs[0]
print(json.dumps({"text": first.text, "tokens": first.token_ids, "again": second.token_ids}))
"""

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


def python(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_the_environment_holds_the_engines_without_a_gpu() -> None:
    printed = python(
        "-c", "import torch, vllm, kserve, openai; print(torch.__version__, torch.cuda.is_available())"
    )
    assert printed.splitlines()[-1] == "2.13.0+cpu False"


def test_vllm_answers_with_the_tiny_model(tiny_model: Path) -> None:
    """Two hundred greedy tokens: never an end of text, always printable, the same every time."""
    answer = json.loads(python("-c", ANSWER, str(tiny_model)).splitlines()[-1])
    assert len(answer["tokens"]) == 200
    assert answer["tokens"] == answer["again"]
    assert answer["text"].isascii()
    assert answer["text"].isprintable()
