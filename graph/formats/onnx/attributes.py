"""The types of the attributes of ONNX's operators, by name, so that reading a model loads none of ONNX's own checkers.

No attribute has changed its type between OLDEST_OPSET and NEWEST_OPSET, so one table serves them all. A test compares it with the
schemas of the installed package `onnx`, and names what has to be added for a newer one.
"""

from __future__ import annotations

from collections.abc import Mapping

OLDEST_OPSET = 7
NEWEST_OPSET = 28


def attribute_kinds(op: str) -> Mapping[str, str]:
    """Return the attributes of an operator of the domain ai.onnx, over all opsets, with the names of their AttributeType.

    It is empty for an operator without attributes, and for one that ONNX does not have.
    """
    return dict(attribute.split("=") for attribute in _ATTRIBUTES.get(op, "").split())


_ATTRIBUTES: Mapping[str, str] = {
    "AffineGrid": "align_corners=INT",
    "ArgMax": "axis=INT keepdims=INT select_last_index=INT",
    "ArgMin": "axis=INT keepdims=INT select_last_index=INT",
    "Attention": (
        "is_causal=INT kv_num_heads=INT left_window_size=INT q_num_heads=INT qk_matmul_output_mode=INT "
        "right_window_size=INT scale=FLOAT softcap=FLOAT softmax_precision=INT"
    ),
    "AveragePool": "auto_pad=STRING ceil_mode=INT count_include_pad=INT dilations=INTS kernel_shape=INTS pads=INTS strides=INTS",
    "BatchNormalization": "epsilon=FLOAT momentum=FLOAT spatial=INT training_mode=INT",
    "Bernoulli": "dtype=INT seed=FLOAT",
    "BitCast": "to=INT",
    "BitShift": "direction=STRING",
    "BlackmanWindow": "output_datatype=INT periodic=INT",
    "Cast": "round_mode=STRING saturate=INT to=INT",
    "CastLike": "round_mode=STRING saturate=INT",
    "CausalConvWithState": "activation=STRING",
    "Celu": "alpha=FLOAT",
    "CenterCropPad": "axes=INTS",
    "Clip": "max=FLOAT min=FLOAT",
    "Col2Im": "dilations=INTS pads=INTS strides=INTS",
    "Compress": "axis=INT",
    "Concat": "axis=INT",
    "ConcatFromSequence": "axis=INT new_axis=INT",
    "Constant": (
        "sparse_value=SPARSE_TENSOR value=TENSOR value_float=FLOAT value_floats=FLOATS value_int=INT value_ints=INTS "
        "value_string=STRING value_strings=STRINGS"
    ),
    "ConstantOfShape": "value=TENSOR",
    "Conv": "auto_pad=STRING dilations=INTS group=INT kernel_shape=INTS pads=INTS strides=INTS",
    "ConvInteger": "auto_pad=STRING dilations=INTS group=INT kernel_shape=INTS pads=INTS strides=INTS",
    "ConvTranspose": (
        "auto_pad=STRING dilations=INTS group=INT kernel_shape=INTS output_padding=INTS output_shape=INTS pads=INTS strides=INTS"
    ),
    "CumProd": "exclusive=INT reverse=INT",
    "CumSum": "exclusive=INT reverse=INT",
    "DFT": "axis=INT inverse=INT onesided=INT",
    "DeformConv": "dilations=INTS group=INT kernel_shape=INTS offset_group=INT pads=INTS strides=INTS",
    "DepthToSpace": "blocksize=INT mode=STRING",
    "DequantizeLinear": "axis=INT block_size=INT output_dtype=INT",
    "Dropout": "ratio=FLOAT seed=INT",
    "Einsum": "equation=STRING",
    "Elu": "alpha=FLOAT",
    "EyeLike": "dtype=INT k=INT",
    "Flatten": "axis=INT",
    "GRU": (
        "activation_alpha=FLOATS activation_beta=FLOATS activations=STRINGS clip=FLOAT direction=STRING "
        "hidden_size=INT layout=INT linear_before_reset=INT"
    ),
    "Gather": "axis=INT",
    "GatherElements": "axis=INT",
    "GatherND": "batch_dims=INT",
    "Gelu": "approximate=STRING",
    "Gemm": "alpha=FLOAT beta=FLOAT transA=INT transB=INT",
    "GlobalLpPool": "p=INT",
    "GridSample": "align_corners=INT mode=STRING padding_mode=STRING",
    "GroupNormalization": "epsilon=FLOAT num_groups=INT stash_type=INT",
    "HammingWindow": "output_datatype=INT periodic=INT",
    "HannWindow": "output_datatype=INT periodic=INT",
    "HardSigmoid": "alpha=FLOAT beta=FLOAT",
    "Hardmax": "axis=INT",
    "If": "else_branch=GRAPH then_branch=GRAPH",
    "ImageDecoder": "pixel_format=STRING",
    "InstanceNormalization": "epsilon=FLOAT",
    "IsInf": "detect_negative=INT detect_positive=INT",
    "LRN": "alpha=FLOAT beta=FLOAT bias=FLOAT size=INT",
    "LSTM": (
        "activation_alpha=FLOATS activation_beta=FLOATS activations=STRINGS clip=FLOAT direction=STRING "
        "hidden_size=INT input_forget=INT layout=INT"
    ),
    "LayerNormalization": "axis=INT epsilon=FLOAT stash_type=INT",
    "LeakyRelu": "alpha=FLOAT",
    "LinearAttention": "chunk_size=INT kv_num_heads=INT q_num_heads=INT scale=FLOAT update_rule=STRING",
    "LogSoftmax": "axis=INT",
    "Loop": "body=GRAPH",
    "LpNormalization": "axis=INT p=INT",
    "LpPool": "auto_pad=STRING ceil_mode=INT dilations=INTS kernel_shape=INTS p=INT pads=INTS strides=INTS",
    "MaxPool": "auto_pad=STRING ceil_mode=INT dilations=INTS kernel_shape=INTS pads=INTS storage_order=INT strides=INTS",
    "MaxRoiPool": "pooled_shape=INTS spatial_scale=FLOAT",
    "MaxUnpool": "kernel_shape=INTS pads=INTS strides=INTS",
    "MeanVarianceNormalization": "axes=INTS",
    "MelWeightMatrix": "output_datatype=INT",
    "Mod": "fmod=INT",
    "Multinomial": "dtype=INT sample_size=INT seed=FLOAT",
    "NegativeLogLikelihoodLoss": "ignore_index=INT reduction=STRING",
    "NonMaxSuppression": "center_point_box=INT",
    "OneHot": "axis=INT",
    "Optional": "type=TYPE_PROTO",
    "Pad": "mode=STRING pads=INTS value=FLOAT",
    "QLinearConv": "auto_pad=STRING dilations=INTS group=INT kernel_shape=INTS pads=INTS strides=INTS",
    "QuantizeLinear": "axis=INT block_size=INT output_dtype=INT precision=INT saturate=INT",
    "RMSNormalization": "axis=INT epsilon=FLOAT stash_type=INT",
    "RNN": (
        "activation_alpha=FLOATS activation_beta=FLOATS activations=STRINGS clip=FLOAT direction=STRING "
        "hidden_size=INT layout=INT"
    ),
    "RandomNormal": "dtype=INT mean=FLOAT scale=FLOAT seed=FLOAT shape=INTS",
    "RandomNormalLike": "dtype=INT mean=FLOAT scale=FLOAT seed=FLOAT",
    "RandomUniform": "dtype=INT high=FLOAT low=FLOAT seed=FLOAT shape=INTS",
    "RandomUniformLike": "dtype=INT high=FLOAT low=FLOAT seed=FLOAT",
    "Range": "stash_type=INT",
    "ReduceL1": "axes=INTS keepdims=INT noop_with_empty_axes=INT",
    "ReduceL2": "axes=INTS keepdims=INT noop_with_empty_axes=INT",
    "ReduceLogSum": "axes=INTS keepdims=INT noop_with_empty_axes=INT",
    "ReduceLogSumExp": "axes=INTS keepdims=INT noop_with_empty_axes=INT",
    "ReduceMax": "axes=INTS keepdims=INT noop_with_empty_axes=INT",
    "ReduceMean": "axes=INTS keepdims=INT noop_with_empty_axes=INT",
    "ReduceMin": "axes=INTS keepdims=INT noop_with_empty_axes=INT",
    "ReduceProd": "axes=INTS keepdims=INT noop_with_empty_axes=INT",
    "ReduceSum": "axes=INTS keepdims=INT noop_with_empty_axes=INT",
    "ReduceSumSquare": "axes=INTS keepdims=INT noop_with_empty_axes=INT",
    "RegexFullMatch": "pattern=STRING",
    "Reshape": "allowzero=INT",
    "Resize": (
        "antialias=INT axes=INTS coordinate_transformation_mode=STRING cubic_coeff_a=FLOAT exclude_outside=INT "
        "extrapolation_value=FLOAT keep_aspect_ratio_policy=STRING mode=STRING nearest_mode=STRING"
    ),
    "ReverseSequence": "batch_axis=INT time_axis=INT",
    "RoiAlign": (
        "coordinate_transformation_mode=STRING mode=STRING output_height=INT output_width=INT sampling_ratio=INT "
        "spatial_scale=FLOAT"
    ),
    "RotaryEmbedding": "interleaved=INT num_heads=INT rotary_embedding_dim=INT",
    "STFT": "onesided=INT",
    "Scan": (
        "body=GRAPH directions=INTS num_scan_inputs=INT scan_input_axes=INTS scan_input_directions=INTS "
        "scan_output_axes=INTS scan_output_directions=INTS"
    ),
    "Scatter": "axis=INT",
    "ScatterElements": "axis=INT reduction=STRING",
    "ScatterND": "reduction=STRING",
    "Selu": "alpha=FLOAT gamma=FLOAT",
    "SequenceEmpty": "dtype=INT",
    "SequenceMap": "body=GRAPH",
    "Shape": "end=INT start=INT",
    "Shrink": "bias=FLOAT lambd=FLOAT",
    "Slice": "axes=INTS ends=INTS starts=INTS",
    "Softmax": "axis=INT",
    "SoftmaxCrossEntropyLoss": "ignore_index=INT reduction=STRING",
    "SpaceToDepth": "blocksize=INT mode=STRING",
    "Split": "axis=INT num_outputs=INT split=INTS",
    "SplitToSequence": "axis=INT keepdims=INT",
    "Squeeze": "axes=INTS",
    "StringNormalizer": "case_change_action=STRING is_case_sensitive=INT locale=STRING stopwords=STRINGS",
    "StringSplit": "delimiter=STRING maxsplit=INT",
    "SwiGLU": "alpha=FLOAT",
    "Swish": "alpha=FLOAT",
    "TensorScatter": "axis=INT mode=STRING",
    "TfIdfVectorizer": (
        "max_gram_length=INT max_skip_count=INT min_gram_length=INT mode=STRING ngram_counts=INTS ngram_indexes=INTS "
        "pool_int64s=INTS pool_strings=STRINGS weights=FLOATS"
    ),
    "ThresholdedRelu": "alpha=FLOAT",
    "TopK": "axis=INT k=INT largest=INT sorted=INT",
    "Transpose": "perm=INTS",
    "Trilu": "upper=INT",
    "Unique": "axis=INT sorted=INT",
    "Unsqueeze": "axes=INTS",
    "Upsample": "mode=STRING scales=FLOATS",
}
