{{/* What worker and builder have in common. */}}

{{/* Arguments of `fifa-stream engine ensure`. Takes the root. */}}
{{- define "fifa.ensureArgs" -}}
{{- $engine := .Values.engine -}}
{{- $ensure := $engine.ensure -}}
- engine
- ensure
{{- with $engine.source.path }}
- {{ . | quote }}
{{- end }}
- --cache=/engines
- --backend={{ $engine.backend }}
- --precision={{ $engine.precision }}
{{- with .Values.settings.engine.pinned_digest }}
- --pinned-digest={{ . }}
{{- end }}
{{- if not (kindIs "invalid" $ensure.optLevel) }}
- --opt-level={{ int $ensure.optLevel }}
{{- end }}
{{- with $ensure.workspace }}
- {{ printf "--workspace=%s" . | quote }}
{{- end }}
{{- range $ensure.computeCapabilities }}
- {{ printf "--compute-capability=%s" . | quote }}
{{- end }}
{{- range $ensure.minShapes }}
- {{ printf "--min-shapes=%s" . | quote }}
{{- end }}
{{- range $ensure.optShapes }}
- {{ printf "--opt-shapes=%s" . | quote }}
{{- end }}
{{- range $ensure.maxShapes }}
- {{ printf "--max-shapes=%s" . | quote }}
{{- end }}
{{- if $ensure.timingCache }}
- --timing-cache=/engines/timing.cache
{{- end }}
{{- with $ensure.acceptancePath }}
- {{ printf "--acceptance=%s" . | quote }}
{{- end }}
{{- end -}}

{{/* Resources with the GPU added, whose request is its limit. Takes a dict: root, resources, gpu (whether it gets one). */}}
{{- define "fifa.resources" -}}
{{- $gpu := .root.Values.gpu -}}
{{- $resources := deepCopy .resources -}}
{{- if .gpu -}}
{{- range list "requests" "limits" -}}
{{- $_ := set $resources . (merge (dict $gpu.resourceName (int $gpu.count)) (default dict (get $resources .))) -}}
{{- end -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* The container that ensures the engine. Takes a dict: root, gpu (whether it gets one), args (more of them), link (mount where links are), readOnly. */}}
{{- define "fifa.ensureContainer" -}}
{{- $root := .root -}}
name: engine
image: {{ include "fifa.image" $root }}
imagePullPolicy: {{ $root.Values.image.pullPolicy }}
args:
  {{- include "fifa.ensureArgs" $root | nindent 2 }}
  {{- range .args }}
  - {{ . }}
  {{- end }}
{{- include "fifa.env" (dict "root" $root "gpu" .gpu) }}
resources:
  {{- include "fifa.resources" (dict "root" $root "resources" (default $root.Values.resources $root.Values.engine.ensure.resources) "gpu" .gpu) | nindent 2 }}
securityContext:
  {{- toYaml $root.Values.containerSecurityContext | nindent 2 }}
volumeMounts:
  - {name: tmp, mountPath: /tmp}
  - {name: engines, mountPath: /engines{{ if .readOnly }}, readOnly: true{{ end }}}
  {{- if .link }}
  - {name: run, mountPath: /run/fifa-stream}
  {{- end }}
  {{- include "fifa.sharedMounts" $root | nindent 2 }}
{{- end -}}

{{/* Environment of worker and builder. A name that the user gives replaces ours: server-side apply refuses a name twice. Takes a dict: root, env, gpu (whether it gets one). */}}
{{- define "fifa.env" -}}
{{- $ours := default list .env -}}
{{- if not .gpu -}}
{{- /* Where NVIDIA's runtime is the default one, an image that says `all` would get every card of the node. */ -}}
{{- $ours = append $ours (dict "name" "NVIDIA_VISIBLE_DEVICES" "value" "void") -}}
{{- end -}}
{{- $given := list -}}
{{- range .root.Values.extraEnv }}{{ $given = append $given .name }}{{ end -}}
{{- $env := list -}}
{{- range $ours }}{{ if not (has .name $given) }}{{ $env = append $env . }}{{ end }}{{ end -}}
{{- with concat $env .root.Values.extraEnv }}
env:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "fifa.sharedMounts" -}}
{{- if .Values.engine.source.volume }}
- {name: source, mountPath: /srv/fifa-stream/source, readOnly: true}
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "fifa.sharedVolumes" -}}
- name: tmp
  emptyDir:
    sizeLimit: {{ .Values.tmpSizeLimit }}
{{- if ne (include "fifa.ensureMode" .) "none" }}
- name: engines
  {{- $cache := .Values.engine.cache }}
  {{- if eq $cache.type "pvc" }}
  persistentVolumeClaim:
    claimName: {{ include "fifa.claimName" . }}
  {{- else if eq $cache.type "hostPath" }}
  hostPath:
    path: {{ $cache.hostPath | quote }}
    type: Directory
  {{- else }}
  emptyDir:
    sizeLimit: {{ $cache.sizeLimit }}
  {{- end }}
{{- end }}
{{- with .Values.engine.source.volume }}
- name: source
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Where pods may go and as whom. Takes a dict: root, gpu (whether they get one), products (of it), priority (in place of priorityClassName). */}}
{{- define "fifa.scheduling" -}}
{{- $values := .root.Values -}}
serviceAccountName: {{ include "fifa.serviceAccountName" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- toYaml $values.podSecurityContext | nindent 2 }}
{{- with $values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with default $values.priorityClassName .priority }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.schedulerName }}
schedulerName: {{ . }}
{{- end }}
{{- if and .gpu $values.gpu.runtimeClassName }}
runtimeClassName: {{ $values.gpu.runtimeClassName }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with concat $values.tolerations (ternary $values.gpu.tolerations list $values.gpu.enabled) }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with fromYaml (include "fifa.affinity" .) }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The user's affinity, each of whose alternatives also asks for one of the products. Takes a dict: root, gpu, products. */}}
{{- define "fifa.affinity" -}}
{{- $affinity := deepCopy .root.Values.affinity -}}
{{- if and .gpu .products -}}
{{- $product := dict "key" .root.Values.gpu.productLabel "operator" "In" "values" .products -}}
{{- $node := default dict $affinity.nodeAffinity -}}
{{- $required := default dict $node.requiredDuringSchedulingIgnoredDuringExecution -}}
{{- $terms := list -}}
{{- range default (list dict) $required.nodeSelectorTerms -}}
{{- $terms = append $terms (merge (dict "matchExpressions" (append (default list .matchExpressions) $product)) .) -}}
{{- end -}}
{{- $_ := set $required "nodeSelectorTerms" $terms -}}
{{- $_ := set $node "requiredDuringSchedulingIgnoredDuringExecution" $required -}}
{{- $_ := set $affinity "nodeAffinity" $node -}}
{{- end -}}
{{- toYaml $affinity -}}
{{- end -}}
