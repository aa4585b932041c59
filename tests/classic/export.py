"""Write the models of this folder, each with inputs and with what its own framework computes of them.

Run `python -m tests.classic.export` where scikit-learn, skl2onnx, XGBoost, LightGBM, onnxmltools and pandas are installed. The
files are committed, so that the tests need none of these.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import onnx
import onnxmltools
import pandas
import xgboost
from onnxmltools.convert.common.data_types import FloatTensorType
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType as Floats
from skl2onnx.common.data_types import StringTensorType as Strings
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_wine
from sklearn.ensemble import (
    AdaBoostClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    IsolationForest,
    RandomForestClassifier,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, Normalizer, OneHotEncoder, StandardScaler
from sklearn.svm import SVC, SVR, OneClassSVM

FOLDER = Path(__file__).parent
TARGET_OPSET = {"": 17, "ai.onnx.ml": 3}
ROWS, LABELS = load_wine(return_X_y=True)
ROWS = ROWS.astype(np.float32)
BINARY = (LABELS == 1).astype(np.int64)
SHOWN = slice(None, None, 11)  # of the rows


def write(name: str, model: Any, feeds: dict[str, Any], answers: list[Any]) -> None:
    """Write a model with its inputs, and its outputs in order as its framework computes them."""
    onnx.save(model, FOLDER / f"{name}.onnx")
    outputs = zip((output.name for output in model.graph.output), answers, strict=True)
    arrays = {f"in {key}": value for key, value in feeds.items()} | {f"out {key}": np.asarray(value) for key, value in outputs}
    np.savez_compressed(FOLDER / f"{name}.npz", **arrays)


def scikit(name: str, estimator: Any, labels: Any = LABELS, *, zipmap: bool = False) -> None:
    """Fit an estimator of scikit-learn, and write it with its predictions."""
    estimator.fit(ROWS, labels)
    options = {"zipmap": zipmap} if hasattr(estimator, "classes_") else None
    model = to_onnx(estimator, ROWS[:1], target_opset=TARGET_OPSET, options=options)
    shown, answers = ROWS[SHOWN], [estimator.predict(ROWS[SHOWN])]
    for method in ("predict_proba", "transform", "decision_function"):
        if len(answers) < len(model.graph.output) and hasattr(estimator, method):
            answers.append(getattr(estimator, method)(shown))
    write(name, model, {"X": shown}, answers)


def boosted() -> None:
    """Write models of XGBoost and LightGBM. The second has missing values, and a feature of categories."""
    types = [("X", FloatTensorType([None, ROWS.shape[1]]))]
    first = xgboost.XGBClassifier(n_estimators=12, max_depth=4).fit(ROWS, LABELS)
    model = onnxmltools.convert_xgboost(first, initial_types=types, target_opset=15)
    write("xgboost", model, {"X": ROWS[SHOWN]}, [first.predict(ROWS[SHOWN]), first.predict_proba(ROWS[SHOWN])])
    rows = ROWS.copy()
    rows[:, 0] = np.arange(len(rows)) * 7 % 5
    rows[::3, 4] = np.nan
    second = lightgbm.LGBMClassifier(n_estimators=6, min_child_samples=5, verbose=-1)
    second.fit(rows, LABELS, categorical_feature=[0])
    model = onnxmltools.convert_lightgbm(second, initial_types=types, target_opset=15)
    write("lightgbm", model, {"X": rows[SHOWN]}, [second.predict(rows[SHOWN]), second.predict_proba(rows[SHOWN])])


def encoded() -> None:
    """Write a pipeline of strings and of numbers that are missing."""
    rng = np.random.default_rng(0)
    words, numbers = rng.choice(["red", "green", "blue"], (90, 1)), rng.standard_normal((90, 2)).astype(np.float32)
    numbers[::7, 0] = np.nan
    frame = pandas.DataFrame({"colour": words[:, 0], "width": numbers[:, 0], "height": numbers[:, 1]})
    labels = np.where(words[:, 0] == "red", "stop", "go")
    numeric = make_pipeline(SimpleImputer(), StandardScaler())
    columns = ColumnTransformer([("words", OneHotEncoder(), ["colour"]), ("numbers", numeric, ["width", "height"])])
    fitted = make_pipeline(columns, LogisticRegression()).fit(frame, labels)
    types = [("colour", Strings([None, 1])), ("width", Floats([None, 1])), ("height", Floats([None, 1]))]
    model = to_onnx(fitted, initial_types=types, target_opset=TARGET_OPSET, options={"zipmap": False})
    feeds = {"colour": words[SHOWN], "width": numbers[SHOWN, :1], "height": numbers[SHOWN, 1:]}
    shown = frame.iloc[SHOWN]
    write("encoded", model, feeds, [fitted.predict(shown), fitted.predict_proba(shown)])


def main() -> None:
    """Write all of them."""
    scikit("trees", ExtraTreesClassifier(15, random_state=0))
    scikit("boosting", AdaBoostClassifier(n_estimators=8, random_state=0))
    scikit("neighbours", KNeighborsClassifier(3))
    scikit("bayes", GaussianNB())
    scikit("ridge", make_pipeline(MinMaxScaler(), Ridge()))
    scikit("kmeans", KMeans(3, n_init=1, random_state=0))
    scikit("logistic", make_pipeline(Normalizer(), LogisticRegression()))
    scikit("isolation", IsolationForest(n_estimators=10, random_state=0))
    scikit("forest", RandomForestClassifier(10, random_state=0), BINARY, zipmap=True)
    scikit("gradient", GradientBoostingClassifier(n_estimators=8, random_state=0), BINARY)
    scaled = make_pipeline(StandardScaler(), SVC(probability=True, random_state=0))
    scikit("vectors", scaled)
    scikit("polynomial", make_pipeline(StandardScaler(), SVC(kernel="poly", probability=True, random_state=0)), BINARY)
    scikit("regression", make_pipeline(StandardScaler(), SVR()), ROWS[:, 0])
    scikit("novelty", make_pipeline(StandardScaler(), OneClassSVM()))
    boosted()
    encoded()


if __name__ == "__main__":
    main()
