{{/* Names. 44 characters leave room for what is put behind (-engine- and a hash) and in front (KEDA's keda-hpa-) of them. */}}
{{- define "fifa.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 44 | trimSuffix "-" -}}
{{- end -}}

{{- define "fifa.fullname" -}}
{{- $name := include "fifa.name" . -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | trunc 44 | trimSuffix "-" -}}
{{- end -}}

{{- define "fifa.serviceAccountName" -}}
{{- default (ternary (include "fifa.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "fifa.userName" -}}
{{- default (include "fifa.fullname" .) .Values.strimzi.user.name -}}
{{- end -}}

{{/* A pattern of the autoscaler's name: ours as an object of its own and as KEDA makes it, or somebody else's, which may have any. */}}
{{- define "fifa.autoscalers" -}}
{{- if eq .Values.autoscaling.mode "external" }}.+{{ else }}(keda-hpa-)?{{ include "fifa.fullname" . }}{{ end -}}
{{- end -}}

{{/* Labels that selectors are made of: they never change in the life of a release. Takes (list root component). */}}
{{- define "fifa.selectorLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "fifa.name" $root | quote }}
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* The metadata of an object. Takes a dict: root, and what is not the default: name, namespace, component, labels, annotations. */}}
{{- define "fifa.metadata" -}}
{{- $root := .root -}}
name: {{ default (include "fifa.fullname" $root) .name | quote }}
namespace: {{ default $root.Release.Namespace .namespace | quote }}
labels:
  {{- $fixed := fromYaml (include "fifa.selectorLabels" (list $root (default "worker" .component))) -}}
  {{- $about := dict "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_") "app.kubernetes.io/version" $root.Chart.AppVersion "app.kubernetes.io/managed-by" $root.Release.Service "app.kubernetes.io/part-of" $root.Chart.Name -}}
  {{- merge $fixed $about (default dict .labels) $root.Values.commonLabels | toYaml | nindent 2 }}
{{- with merge (dict) (default dict .annotations) $root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "fifa.image" -}}
{{- $image := .Values.image -}}
{{- $name := ternary $image.repository (printf "%s/%s" $image.registry $image.repository) (empty $image.registry) -}}
{{- if $image.digest -}}
{{ $name }}@{{ $image.digest }}
{{- else -}}
{{ $name }}:{{ default (printf "%s%s" .Chart.AppVersion (ternary "-gpu" "" .Values.gpu.enabled)) $image.tag }}
{{- end -}}
{{- end -}}

{{/* Who ensures the engine: init, job or none. Nothing is to be built for fp32 on ONNX Runtime: that is what bundles are. */}}
{{- define "fifa.ensureMode" -}}
{{- $engine := .Values.engine -}}
{{- if ne $engine.ensure.mode "auto" -}}
{{ $engine.ensure.mode }}
{{- else -}}
{{ ternary "none" "init" (and (eq $engine.backend "onnxruntime") (eq $engine.precision "fp32")) }}
{{- end -}}
{{- end -}}

{{- define "fifa.claimName" -}}
{{- default (printf "%s-engines" (include "fifa.fullname" .)) .Values.engine.cache.pvc.existingClaim -}}
{{- end -}}

{{/* The settings that the worker gets: those of the values, and what the chart itself knows. As YAML. */}}
{{- define "fifa.settings" -}}
{{- $settings := deepCopy .Values.settings -}}
{{- $secrets := .Values.secrets -}}
{{- $dir := "/run/secrets/fifa-stream" -}}
{{- if $secrets.tls.ca.existingSecret }}{{ $_ := set $settings.kafka "ssl_cafile" (printf "%s/ca/%s" $dir $secrets.tls.ca.key) }}{{ end -}}
{{- if $secrets.tls.client.existingSecret -}}
{{- $_ := set $settings.kafka "ssl_certfile" (printf "%s/client/%s" $dir $secrets.tls.client.certKey) -}}
{{- $_ := set $settings.kafka "ssl_keyfile" (printf "%s/client/%s" $dir $secrets.tls.client.keyKey) -}}
{{- with $secrets.tls.client.passphraseKey }}{{ $_ := set $settings.kafka "ssl_password_file" (printf "%s/client/%s" $dir .) }}{{ end -}}
{{- end -}}
{{- if $secrets.sasl.existingSecret }}{{ $_ := set $settings.kafka "sasl_password_file" (printf "%s/sasl/%s" $dir $secrets.sasl.passwordKey) }}{{ end -}}
{{- if $secrets.oauth.existingSecret }}{{ $_ := set $settings.kafka "sasl_oauth_client_secret_file" (printf "%s/oauth/%s" $dir $secrets.oauth.clientSecretKey) }}{{ end -}}
{{- if $secrets.oauth.projectedToken.enabled }}{{ $_ := set $settings.kafka "sasl_oauth_token_file" (printf "%s/token/token" $dir) }}{{ end -}}
{{- if ne (include "fifa.ensureMode" .) "none" -}}
{{- $_ := set $settings.engine "folder" "/run/fifa-stream/engine" -}}
{{- $_ := unset $settings.engine "pinned_digest" -}}
{{- else if .Values.engine.source.path -}}
{{- $_ := set $settings.engine "folder" .Values.engine.source.path -}}
{{- end -}}
{{- toYaml $settings -}}
{{- end -}}

{{/*
A table of TOML. Takes (list name table). JSON writes strings, numbers, booleans and lists as TOML does, and no number as 1e+06.
*/}}
{{- define "fifa.toml" -}}
{{- $name := index . 0 -}}
[{{ $name }}]
{{- range $key, $value := index . 1 }}
{{- if not (or (kindIs "map" $value) (kindIs "invalid" $value)) }}
{{ $key }} = {{ toRawJson $value }}
{{- end }}
{{- end }}
{{- range $key, $map := index . 1 }}
{{- if kindIs "map" $map }}

[{{ $name }}.{{ $key }}]
{{- range keys $map | sortAlpha }}
{{ toRawJson . }} = {{ get $map . | toRawJson }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "fifa.settingsFile" -}}
{{- range $section, $table := fromYaml (include "fifa.settings" .) }}
{{ include "fifa.toml" (list $section $table) }}
{{ end }}
{{- end -}}

{{/* Seconds, whole, that a start may take under the startup probe. */}}
{{- define "fifa.startupBudget" -}}
{{- with .Values.probes.startup }}{{ mul .periodSeconds .failureThreshold }}{{ end -}}
{{- end -}}

{{/* Seconds from a pod's creation to its readiness: the build, where the pod waits for it, then the start. */}}
{{- define "fifa.rolloutBudget" -}}
{{- $ensure := ternary 0 .Values.engine.ensure.timeoutSeconds (eq (include "fifa.ensureMode" .) "none") -}}
{{- add $ensure (include "fifa.startupBudget" .) .Values.minReadySeconds -}}
{{- end -}}

{{/* Ports that settings make the worker connect to: brokers, and whatever is asked by HTTP. A list as JSON. */}}
{{- define "fifa.kafkaPorts" -}}
{{- $ports := .Values.networkPolicy.kafkaPorts -}}
{{- if not $ports -}}
{{- range splitList "," .Values.settings.kafka.bootstrap_servers }}{{ $ports = append $ports (int (regexFind "[0-9]+$" (trim .))) }}{{ end -}}
{{- end -}}
{{- uniq $ports | toJson -}}
{{- end -}}

{{- define "fifa.httpPorts" -}}
{{- $settings := .Values.settings -}}
{{- $urls := list $settings.kafka.sasl_oauth_token_url $settings.claims.s3_endpoint $settings.telemetry.otlp_endpoint -}}
{{- range $settings.claims.allowed -}}
{{- if hasPrefix "https://" . }}{{ $urls = append $urls . }}{{ end -}}
{{- if and (hasPrefix "s3://" .) (not $settings.claims.s3_endpoint) }}{{ $urls = append $urls "https://s3" }}{{ end -}}
{{- end -}}
{{- $ports := list -}}
{{- range compact $urls -}}
{{- $port := regexFind ":[0-9]+$" (urlParse .).host | trimPrefix ":" -}}
{{- $ports = append $ports (int (default (ternary 80 443 (hasPrefix "http://" .)) $port)) -}}
{{- end -}}
{{- uniq $ports | sortAlpha | toJson -}}
{{- end -}}
