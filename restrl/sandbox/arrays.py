"""Arrays, series and data frames as plain data, between DS-1000's tests and the program.

Its text is also part of the program that runs there (unittests.py), so it imports nothing of restrl. What
`unpack` builds is made of plain data alone: no object arrays by their bytes, no code of the sender.
"""

import re
import sys

_MARK = "restrl:"
_PLAIN_TYPE = re.compile(r"[<>|=]?[?biufcSUmM]\d*(\[\w+\])?")  # numpy's text of types without objects


def pack(value):  # type: ignore[no-untyped-def]
    """`value` with arrays and frames in it described by tuples; what cannot be described stays."""
    kind = type(value)
    if kind in (list, tuple):
        return kind(map(pack, value))
    if kind is dict:
        return {key: pack(v) for key, v in value.items()}
    numpy, pandas = sys.modules.get("numpy"), sys.modules.get("pandas")
    if numpy is not None and kind is numpy.ndarray:
        return _pack_array(value)
    if numpy is not None and isinstance(value, numpy.generic) and _PLAIN_TYPE.fullmatch(value.dtype.str):
        return (_MARK + "scalar", _pack_array(numpy.asarray(value)))
    if pandas is None:
        return value
    if kind is pandas.DataFrame:
        columns = [pack(value.iloc[:, i]) for i in range(value.shape[1])]
        return (_MARK + "frame", pack(value.columns), pack(value.index), columns)
    if kind is pandas.Series:
        return (_MARK + "series", _pack_values(value), pack(value.index), pack(value.name))
    if isinstance(value, pandas.MultiIndex):
        return (_MARK + "multi", pack(value.tolist()), pack(list(value.names)))
    if isinstance(value, pandas.RangeIndex):
        return (_MARK + "range", (value.start, value.stop, value.step), pack(value.name))
    if isinstance(value, pandas.Index):
        return (_MARK + "index", _pack_values(value), pack(value.name))
    if kind is pandas.Timestamp:
        return (_MARK + "timestamp", value.isoformat())
    if kind is pandas.Timedelta:
        return (_MARK + "timedelta", value.isoformat())
    if value is pandas.NaT or value is pandas.NA:
        return (_MARK + "missing", "NaT" if value is pandas.NaT else "NA")
    return value


def unpack(value):  # type: ignore[no-untyped-def]
    """What `pack` described. Raises ValueError or TypeError for what it does not write."""
    kind = type(value)
    if kind is list:
        return list(map(unpack, value))
    if kind is dict:
        return {key: unpack(v) for key, v in value.items()}
    if kind is not tuple:
        return value
    if not value or type(value[0]) is not str or not value[0].startswith(_MARK):
        return tuple(map(unpack, value))
    what, *parts = value
    if what in (_MARK + "array", _MARK + "objects"):
        return _unpack_array(what, *parts)
    if what == _MARK + "scalar":
        return unpack(parts[0])[()]
    import pandas

    if what == _MARK + "frame":
        names, index, columns = unpack(parts[0]), unpack(parts[1]), list(map(unpack, parts[2]))
        frame = pandas.DataFrame(dict(enumerate(columns)), index=index)
        frame.columns = names
        return frame
    if what == _MARK + "series":
        values, dtype = _unpack_values(parts[0])
        return pandas.Series(values, index=unpack(parts[1]), name=unpack(parts[2]), dtype=dtype)
    if what == _MARK + "multi":
        return pandas.MultiIndex.from_tuples(unpack(parts[0]), names=unpack(parts[1]))
    if what == _MARK + "range":
        return pandas.RangeIndex(*parts[0], name=unpack(parts[1]))
    if what == _MARK + "index":
        values, dtype = _unpack_values(parts[0])
        return pandas.Index(values, dtype=dtype, name=unpack(parts[1]))
    if what == _MARK + "timestamp":
        return pandas.Timestamp(str(parts[0]))
    if what == _MARK + "timedelta":
        return pandas.Timedelta(str(parts[0]))
    if what == _MARK + "missing":
        return pandas.NaT if parts == ["NaT"] else pandas.NA
    raise ValueError(f"unknown {what}")


def _pack_array(array):  # type: ignore[no-untyped-def]
    if _PLAIN_TYPE.fullmatch(array.dtype.str):
        return (_MARK + "array", array.dtype.str, array.shape, array.tobytes())
    if array.dtype == object:
        return (_MARK + "objects", "", array.shape, [pack(v) for v in array.ravel()])
    return array  # fields: no plain data


def _unpack_array(what, dtype, shape, data):  # type: ignore[no-untyped-def]
    import numpy

    if what == _MARK + "objects":
        array = numpy.empty(len(data), dtype=object)
        for i, item in enumerate(data):
            array[i] = unpack(item)
        return array.reshape(shape)
    if type(data) is not bytes or not _PLAIN_TYPE.fullmatch(dtype):
        raise ValueError("no array")
    if not data:
        return numpy.empty(shape, dtype=dtype)[:0].reshape(shape)
    return numpy.frombuffer(data, dtype=dtype).reshape(shape).copy()


def _pack_values(values):  # type: ignore[no-untyped-def]
    """Values of a series or index: an array where numpy has the type, or the items and pandas' name of it."""
    import numpy
    import pandas

    if isinstance(values.dtype, numpy.dtype):
        return (_pack_array(values.to_numpy()), "")
    items = [pack(v) for v in values.astype(object)]
    if isinstance(values.dtype, pandas.CategoricalDtype):
        return (items, "category", pack(values.dtype.categories), bool(values.dtype.ordered))
    return (items, str(values.dtype))


def _unpack_values(described):  # type: ignore[no-untyped-def]
    values, name, *more = described
    values = unpack(values)
    if more:
        import pandas

        return (values, pandas.CategoricalDtype(unpack(more[0]), ordered=more[1]))
    return (values, name) if name else (values, values.dtype)
