import numpy as np
from sklearn import metrics


def get_test_metrics(y_pred, y_true, img_names):
    false_positive, true_positive, _ = metrics.roc_curve(y_true, y_pred, pos_label=1)
    false_negative = 1 - true_positive
    by_folder = {}
    for name, prob, label in zip(img_names, y_pred, y_true):
        by_folder.setdefault(name.replace("\\", "/").split("/")[-2], []).append((prob, label))
    probs = [np.mean([prob for prob, _ in frames]) for frames in by_folder.values()]
    labels = [int(np.mean([label for _, label in frames])) for frames in by_folder.values()]
    return {
        "acc": float(np.mean((y_pred > 0.5) == (y_true == 1))),
        "auc": metrics.auc(false_positive, true_positive),
        "eer": false_positive[np.nanargmin(np.abs(false_negative - false_positive))],
        "ap": metrics.average_precision_score(y_true, y_pred),
        "video_auc": metrics.roc_auc_score(labels, probs),
    }
