"""Natural-language prompt/completion data whose completions take known answering strategies.

Each task module offers `STRATEGIES`, `make_prompt`, `write` and `judge`; `make` writes JSONL files.
"""
