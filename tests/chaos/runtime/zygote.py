"""The real zygote, with this runtime."""

from __future__ import annotations

import argparse

from runtimes.vllm_pd.zygote import Zygote

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--name", required=True)
    args = parser.parse_args()
    Zygote(args.socket, args.name, "tests.chaos.runtime").run()
