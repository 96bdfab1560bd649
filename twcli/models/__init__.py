"""The frozen model, and the model with K latents that is made of it.

In: a checkpoint or a finished run, and batches. Out: b_t, hidden states, per-latent NLL, router,
posterior and completions. How a model is loaded, read, extended, adapted and split over processes
may be changed here; no loss is known here.
"""
