{{- define "herdsman.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "herdsman.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "herdsman.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "herdsman.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* Cluster-wide objects of two releases in different namespaces must not collide. */ -}}
{{- define "herdsman.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "herdsman.fullname" .) | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "herdsman.serviceAccount" -}}
{{- if .Values.serviceAccount.name -}}
{{- .Values.serviceAccount.name -}}
{{- else if .Values.serviceAccount.create -}}
{{- include "herdsman.fullname" . -}}
{{- else -}}
{{- fail "serviceAccount.name: give the name of the existing ServiceAccount, or set serviceAccount.create to true." -}}
{{- end -}}
{{- end -}}

{{- define "herdsman.selector" -}}
app.kubernetes.io/name: {{ include "herdsman.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "herdsman.labels" -}}
{{ include "herdsman.selector" . }}
app.kubernetes.io/part-of: herdsman
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.extraLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* An image by its values: dict "root" $ "of" .Values.images.trainer */ -}}
{{- define "herdsman.image" -}}
{{- $registry := .root.Values.global.imageRegistry | default .of.registry | trimSuffix "/" -}}
{{- $name := ternary .of.repository (printf "%s/%s" $registry .of.repository) (empty $registry) -}}
{{- if .of.digest -}}
{{- printf "%s@%s" $name .of.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (.of.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- /* The watched namespaces as {"list": [...]}, or {"list": ["*"]}. */ -}}
{{- define "herdsman.namespaces" -}}
{{- $list := .Values.watchNamespaces | uniq -}}
{{- if and (has "*" $list) (gt (len $list) 1) -}}
{{- fail "watchNamespaces: \"*\" means all namespaces; it cannot stand beside others." -}}
{{- end -}}
{{- toYaml (dict "list" (default (list .Release.Namespace) $list)) -}}
{{- end -}}

{{- /* Not empty where the monitoring object is wanted: dict "root" $ "create" .Values.serviceMonitor.create */ -}}
{{- define "herdsman.monitored" -}}
{{- if or (eq .create "always") (and (eq .create "auto") (.root.Capabilities.APIVersions.Has "monitoring.coreos.com/v1")) -}}
true
{{- end -}}
{{- end -}}
