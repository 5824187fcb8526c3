"""lm-evaluation-harness on models and views: `model`, its class of models; `tasks`; and whole evaluations.

Nothing here is imported before it is wanted: lm-eval is an extra, `restack[eval]`.
"""
