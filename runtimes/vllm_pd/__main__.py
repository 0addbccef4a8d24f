"""`python -m runtimes.vllm_pd --model FOLDER --port N`: one instance."""

from runtimes.vllm_pd.server import run

if __name__ == "__main__":
    run()
