"""Models and views as lm-eval's models: `--model restack`, wherever `restack` has been imported."""

from typing import Any

from lm_eval.models.huggingface import HFLM  # type: ignore[import-untyped]
from lm_eval.models.utils import resolve_max_length  # type: ignore[import-untyped]

from restack import __version__
from restack.scanning.harness.arguments import check_options, read_arguments
from restack.scanning.harness.opening import Wanted, opened, taken
from restack.scanning.harness.quiet import level


class RestackLM(HFLM):  # type: ignore[misc]
    """lm-eval's model hf, on a model or view that Restack opens.

    Attributes:
        plan: what is run of the base; None if a loaded model was given and no plan for it.
        cut: how many requests so far were longer than `max_length`, and have lost their beginning.
    """

    def __init__(
        self,
        pretrained: Any,
        *,
        layers: Any = None,
        ratio: str | None = None,
        kv: str | None = None,
        tokenizer: Any = None,
        dtype: Any = None,
        device: str | None = None,
        revision: Any = None,
        trust_remote_code: bool = False,
        batch_size: int | str = 1,
        **options: Any,
    ) -> None:
        """Open a model, or take one that is loaded.

        Args:
            pretrained: what `restack.open` reads: a folder, hub id, recipe, mergekit config or demo, with
                @SPEC for a view; or a loaded model or view.
            layers: the layers to run, in any notation of `restack.plan`.
            ratio: or depth ranges, 0:0.5,0.3:1.
            kv: a KV map, or the name of one.
            tokenizer: one that is loaded, or the name of a model that has it; without, the model's own.
            dtype: of the weights: auto (without), float32, bfloat16 or float16.
            device: without, cuda if there is a GPU; cuda means cpu without one, as for lm-eval's own models.
            revision: of a model on the hub.
            trust_remote_code: run code that comes with the model.
            batch_size: requests at once; or auto.
            options: others of HFLM: max_length, add_bos_token, prefix_token_id, softmax_dtype...

        Raises:
            UsageError: an option that does not exist, or is not for models that Restack opens; the layers
                are given twice.
            ModelError, PlanError, ViewError: as `restack.open` and `restack.view` do.
        """
        check_options(options)
        wanted = Wanted(layers=layers, ratio=ratio, kv=kv)
        revision = None if revision is None else str(revision)
        if isinstance(pretrained, str):
            found = opened(
                pretrained,
                wanted,
                tokenizer,
                dtype=dtype,
                device=device,
                revision=revision,
                trust_remote_code=bool(trust_remote_code),
            )
        else:
            found = taken(pretrained, wanted, tokenizer, dtype=dtype, device=device)
        self.plan = found.plan
        self.cut = 0
        with level("lm_eval.models.huggingface"):  # it warns that the model is loaded already
            super().__init__(
                pretrained=found.model,
                tokenizer=found.tokenizer,
                backend="causal",
                batch_size=batch_size,
                revision=revision or "main",
                trust_remote_code=trust_remote_code,
                **options,
            )
        if found.hub_id is not None:
            self.pretrained = found.hub_id  # its commit is to stand in the results

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Any = None) -> "RestackLM":
        """The model of lm-eval's `pretrained=demo,layers=0:8,4:12`, the spec in quotes or without."""
        more = {name: value for name, value in (additional_config or {}).items() if value is not None}
        return cls(**read_arguments(arg_string), **more)

    def get_model_info(self) -> dict[str, Any]:
        """What stands in lm-eval's results about the model; its plan too."""
        info: dict[str, Any] = super().get_model_info()
        plan = None if self.plan is None else str(self.plan)
        return info | {"restack_plan": plan, "restack_version": __version__}

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        self.cut += sum(len(context) + len(target) > self.max_length + 1 for _, context, target in requests)
        return super()._loglikelihood_tokens(requests, *args, **kwargs)

    def tok_batch_encode(
        self, strings: Any, padding_side: str = "left", left_truncate_len: int | None = None, **options: Any
    ) -> Any:
        """As HFLM's; counts what is cut."""
        tokens, mask = super().tok_batch_encode(strings, padding_side, None, **options)  # (B, T)
        if left_truncate_len:
            self.cut += int((mask.sum(dim=1) > left_truncate_len).sum())
            tokens, mask = tokens[:, -left_truncate_len:], mask[:, -left_truncate_len:]
        return tokens, mask


class Reader(HFLM):  # type: ignore[misc]
    """Makes tokens of requests as HFLM does, without a model: `loglikelihood` gives (context, target)."""

    def __init__(self, tokenizer: Any, max_length: int | None = None) -> None:
        """Read for models with this tokenizer.

        Args:
            tokenizer: loaded.
            max_length: tokens that the models read; without, as HFLM has it for a config that does not say.
        """
        super(HFLM, self).__init__()
        self.tokenizer = tokenizer
        self.add_bos_token = self.custom_prefix_token_id = self.enable_thinking = None
        self._max_length = max_length or resolve_max_length(None, tokenizer)

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        return [(context, target) for _, context, target in requests]
