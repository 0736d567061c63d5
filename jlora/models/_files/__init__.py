"""Models in files: from a name (`_source`) to an open folder or file, and from there to a tree.

`_huggingface` and `_gguf` open; `_torch_tensors` says how a leaf lies there, `_stacking` makes the
tree, one layer at a time. Back: `_export`, by `_layer_by_layer` and `_shards`, into a folder that
appears complete (`_complete_folder`) with what stands beside the weights (`_beside_weights`); or
`_export_gguf` into a GGUF file (`_complete_file`), whose bytes are the base's (`_gguf_layout`) but
for the weights that change (`_gguf_plan`, `_gguf_encoding`).
"""
