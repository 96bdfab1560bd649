"""The frozen model, and the model with K latents that is built from it.

In: a checkpoint or a finished run, and batches. Out: b_t, hidden states, per-latent NLL, router,
posterior and completions. How a model is loaded, run, extended, adapted and sharded over processes
may be changed here; nothing here depends on a loss.
"""
