"""Files and folders that are whole or absent.

JSON, YAML, safetensors and manifests are read with bounds on their size; nothing in them is executed. Nothing here
knows what the files mean.
"""

from superweight_ensembles.storage.files import (
    check_no_links,
    contained_file,
    draft_of,
    is_draft,
    parse_json,
    read_json,
    read_text,
    write_bytes,
    write_json,
    write_text,
)
from superweight_ensembles.storage.folders import (
    LOCK_FILE,
    MANIFEST_FILE,
    MANIFEST_FORMAT,
    check_file,
    check_manifest,
    clear_drafts,
    empty_folder,
    file_entry,
    list_file,
    locked_folder,
    recover_folder,
    whole_folder,
    write_manifest,
)
from superweight_ensembles.storage.limits import cell, check_levels, check_parameters_fit, check_plain, escape_controls
from superweight_ensembles.storage.provenance import provenance
from superweight_ensembles.storage.records import Amount, Count, Name, Positive, Share, as_content, content_as, read_as
from superweight_ensembles.storage.tensors import count_numbers, read_header, read_module, read_tensors
from superweight_ensembles.storage.yaml_file import bundled_recipes, no_recipe, parse_yaml, read_yaml, recipe_path

__all__ = [
    "LOCK_FILE",
    "MANIFEST_FILE",
    "MANIFEST_FORMAT",
    "Amount",
    "Count",
    "Name",
    "Positive",
    "Share",
    "as_content",
    "bundled_recipes",
    "cell",
    "check_file",
    "check_levels",
    "check_manifest",
    "check_no_links",
    "check_parameters_fit",
    "check_plain",
    "clear_drafts",
    "contained_file",
    "content_as",
    "count_numbers",
    "draft_of",
    "empty_folder",
    "escape_controls",
    "file_entry",
    "is_draft",
    "list_file",
    "locked_folder",
    "no_recipe",
    "parse_json",
    "parse_yaml",
    "provenance",
    "read_as",
    "read_header",
    "read_json",
    "read_module",
    "read_tensors",
    "read_text",
    "read_yaml",
    "recipe_path",
    "recover_folder",
    "whole_folder",
    "write_bytes",
    "write_json",
    "write_manifest",
    "write_text",
]
