"""Ensembles on the Hugging Face Hub: what is saved is what is uploaded, and nothing downloaded is executed."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from huggingface_hub.errors import HFValidationError

from superweight_ensembles.ensemble.saving import ENSEMBLE_FILES
from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.plan import Members, SharingPlan
from superweight_ensembles.storage import accessing, write_text

if TYPE_CHECKING:  # typing_extensions is no requirement of this package
    from typing_extensions import Self


class HubModel(ModelHubMixin, library_name="superweight-ensembles", tags=["ensemble"]):
    """``from_pretrained``, ``save_pretrained`` and ``push_to_hub`` over a class's own saving and loading."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        # The mixin notes constructor arguments and writes them as a configuration. Here the plan is the only source of
        # truth: no argument is looked at or kept, and config.json is the ensemble's own.
        return super(ModelHubMixin, cls).__new__(cls)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        name_or_folder: str | Path,
        *,
        members: Members | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> Self:
        """Load an ensemble from a folder, or from a repository of the Hub where no such folder exists.

        Args:
            name_or_folder: Folder that :meth:`save_pretrained` wrote, or ``user/name`` as :meth:`push_to_hub` took it.
            members: Networks of the saved names and shapes; None where all were made by registry name.
            revision: Branch, tag or commit of the repository; its newest where None.
            token: For a private repository; the one that ``hf auth login`` keeps where None.
            cache_dir: Where downloads are kept.
            force_download: Download again what is there.
            local_files_only: Use what was downloaded before, never the network.

        Raises:
            SuperWeightError: Neither a folder nor a repository that can be read; whatever :meth:`load` raises.
        """
        return cls._from_pretrained(
            model_id=name_or_folder,  # type: ignore[arg-type]
            members=members,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
        )

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | Path, *, config: None = None, model_card_kwargs: dict[str, Any] | None = None
    ) -> None:
        """Save into a folder, as :meth:`save` does, with a model card where none is there.

        Args:
            save_directory: The folder; a saved ensemble of that name is replaced, its README.md is kept.
            config: None. An ensemble has no other configuration than its plan.
            model_card_kwargs: For :meth:`generate_model_card`.

        Raises:
            SuperWeightError: A folder that holds something else than a saved ensemble; a ``config``.
        """
        if config is not None:
            raise SuperWeightError("config= is not taken: an ensemble's config.json is written from its members")
        folder = Path(save_directory)
        self._save_pretrained(folder)
        if not (folder / "README.md").exists():
            write_text(folder / "README.md", str(self.generate_model_card(**(model_card_kwargs or {}))))

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the ensemble with a model card: the bank, not the members, and no pickle.

        Args:
            repo_id: ``user/name``; made if it does not exist.
            **options: As huggingface_hub takes them: ``private``, ``token``, ``branch``, ``create_pr``,
                ``commit_message``, ``allow_patterns``, ``ignore_patterns`` ("README.md" keeps a card that was written
                on the Hub), ``delete_patterns``.

        Returns:
            Description of the commit, as huggingface_hub returns it.

        Raises:
            SuperWeightError: A name that the Hub does not take; a ``config``.
        """
        if options.get("config") is not None:
            raise SuperWeightError("config= is not taken: an ensemble's config.json is written from its members")
        card = {"repo_id": repo_id, **(options.pop("model_card_kwargs", None) or {})}
        try:
            return super().push_to_hub(repo_id, model_card_kwargs=card, **options)
        except HFValidationError as error:
            raise SuperWeightError(
                f"{repo_id!r} is no name for a repository, such as user/my-ensemble: {error}"
            ) from None


def local_folder(name: str | Path, **download: Any) -> Path:
    """The folder of that name, or the download of the repository of that name."""
    folder = Path(name)
    with accessing(folder, "read"):
        if folder.exists():
            return folder
    if isinstance(name, Path):
        raise SuperWeightError(f"{folder} is no folder: give what save_pretrained wrote, or 'user/name' of the Hub")
    try:
        return Path(snapshot_download(name, allow_patterns=sorted(ENSEMBLE_FILES), **download))
    except (OSError, HFValidationError) as error:
        reason = str(error).strip().splitlines()
        raise SuperWeightError(
            f"{name!r} is no folder here, and no repository of the Hub that can be read: "
            f"{reason[0] if reason else type(error).__name__}"
        ) from error


def model_card(
    metadata: str, plan: SharingPlan, made: dict[str, str | None], num_parameters: int, repo_id: str | None
) -> ModelCard:
    """What the ensemble is and how to load it; ``made`` has each member's registry name, None where it has none."""
    name = repo_id or "path/to/this/folder"
    own = [member for member, model in made.items() if model is None]
    given = f", members={{{', '.join(f'{member!r}: ...' for member in own)}}}" if own else ""
    note = "Give `members=` all networks, by name, as they were made for training.\n" if own else ""
    models = {member: model or "a module of its own" for member, model in made.items()}
    table = [
        f"| {_cell(member.name)} | {_cell(models[member.name])} | {member.num_parameters:,} |"
        for member in plan.members
    ]
    return ModelCard(
        "\n".join(
            [
                f"---\n{metadata.strip()}\n---",
                f"# {_cell(name.rpartition('/')[2]) if repo_id else 'Shared-bank ensemble'}\n",
                f"{len(plan.members)} networks whose weights one parameter bank generates: {num_parameters:,} "
                f"trainable parameters; apart they own {plan.independent_parameters:,}.\n",
                "```python",
                "import superweight_ensembles as swe\n",
                f"ensemble = swe.SuperWeightEnsemble.from_pretrained({name!r}{given}).eval()",
                "probabilities = ensemble(images).softmax(-1).mean(0)  # (batch, classes)",
                f"plain = ensemble.materialize({plan.member_names[0]!r})  # one member as a plain network",
                "```\n",
                note,
                "| member | model | parameters apart |\n| --- | --- | --- |",
                *table,
                "\nLoading executes nothing from this repository: JSON and safetensors alone.\n",
            ]
        )
    )


def _cell(text: str) -> str:
    return escape(" ".join(text.split())).replace("|", "&#124;")
