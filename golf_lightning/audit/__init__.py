"""The evidence that a reviewer asks for, as checks of an artifact, a data folder and a run."""

from golf_lightning.audit.run import AuditConfig as AuditConfig
from golf_lightning.audit.run import audit as audit
