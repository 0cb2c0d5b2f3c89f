{{- /* What all pods have in common. */ -}}

{{- define "chattts.labels" -}}
labels:
  app.kubernetes.io/part-of: chattts
{{- end }}

{{- define "chattts.workload.labels" -}}
labels:
  app: {{ . }}
  app.kubernetes.io/part-of: chattts
{{- end }}

{{- /* Of (app, port of metrics). */ -}}
{{- define "chattts.pod.metadata" -}}
labels:
  app: {{ index . 0 }}
annotations:
  prometheus.io/scrape: "true"
  prometheus.io/port: {{ index . 1 | quote }}
{{- end }}

{{- /* Of (root, app, user). */ -}}
{{- define "chattts.pod" -}}
automountServiceAccountToken: false
{{- with (index . 0).Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ index . 2 }}
  runAsGroup: {{ index . 2 }}
  seccompProfile: { type: RuntimeDefault }
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: { app: {{ index . 1 }} }
{{- end }}

{{- /* Of (root, image, tag where the image names none). */ -}}
{{- define "chattts.container" -}}
{{- $image := index . 1 -}}
image: {{ printf "%s:%s" $image.repository (default (index . 2) $image.tag) }}
{{- with (index . 0).Values.images.pullPolicy }}
imagePullPolicy: {{ . }}
{{- end }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: { drop: [ALL] }
{{- end }}

{{- define "chattts.disruption" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ . }}
  {{- include "chattts.labels" . | nindent 2 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels: { app: {{ . }} }
{{- end }}
