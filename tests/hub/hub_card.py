"""What the Hub demands of the YAML block of a model card."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

_BLOCK = re.compile(r'\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)', re.DOTALL | re.MULTILINE)
_TEXT = ('license', 'license_name', 'license_link', 'library_name', 'pipeline_tag')
_TEXTS = ('tags', 'datasets', 'metrics', 'language', 'base_model')


def check_card(content: str) -> tuple[list[str], list[str]]:
    """Errors and warnings of a model card; a card with errors is refused."""
    block = _BLOCK.match(content)
    if block is None:
        return [], ['empty or missing yaml metadata in repo card']
    try:
        metadata = yaml.safe_load(block[1])
    except yaml.YAMLError as error:
        return [f'YAML Metadata Error: {error}'], []
    if metadata is None:
        return [], ['empty or missing yaml metadata in repo card']
    if not isinstance(metadata, dict):
        return ['"metadata" must be of type object'], []
    return list(_find_errors(metadata)), []


def _find_errors(metadata: dict[str, Any]) -> Iterator[str]:
    for key in _TEXT:
        if not isinstance(metadata.get(key, ''), str):
            yield f'"{key}" must be a string'
    for key in _TEXTS:
        value = metadata.get(key, [])
        if not isinstance(value, str) and not _is_list_of(value, str):
            yield f'"{key}" must be an array of strings'
    if isinstance(metadata.get('tags'), str):
        yield '"tags" must be an array'
    if 'model-index' in metadata:
        yield from _find_index_errors(metadata['model-index'])


def _find_index_errors(index: Any) -> Iterator[str]:
    if not _is_list_of(index, dict) or not index:
        yield '"model-index" must be an array of objects'
        return
    for i, model in enumerate(index):
        where = f'model-index[{i}]'
        yield from _missing_text(model, where, 'name')
        if not _is_list_of(model.get('results'), dict):
            yield f'"{where}.results" must be an array of objects'
            continue
        for j, result in enumerate(model['results']):
            yield from _find_result_errors(result, f'{where}.results[{j}]')


def _find_result_errors(result: dict[str, Any], where: str) -> Iterator[str]:
    for key, texts in (('task', ('type',)), ('dataset', ('type', 'name'))):
        if not isinstance(result.get(key), dict):
            yield f'"{where}.{key}" is required'
            continue
        yield from _missing_text(result[key], f'{where}.{key}', *texts)
    if not _is_list_of(result.get('metrics'), dict) or not result['metrics']:
        yield f'"{where}.metrics" must be an array of objects'
        return
    for i, metric in enumerate(result['metrics']):
        yield from _missing_text(metric, f'{where}.metrics[{i}]', 'type')
        if metric.get('value') is None:
            yield f'"{where}.metrics[{i}].value" is required'


def _missing_text(mapping: dict[str, Any], where: str, *keys: str) -> Iterator[str]:
    for key in keys:
        if not isinstance(mapping.get(key), str) or not mapping[key]:
            yield f'"{where}.{key}" is required'


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)
