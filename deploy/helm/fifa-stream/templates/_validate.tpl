{{/*
What no schema can say: values that do not go together. Each line names the values, what is wrong with them, and what to do. All are told at once.
What the worker itself would refuse at its start is refused here, before anything is rolled out.
*/}}
{{- define "fifa.validate" -}}
{{- $v := .Values -}}
{{- $kafka := $v.settings.kafka -}}
{{- $runtime := $v.settings.runtime -}}
{{- $letters := $v.settings.dead_letters -}}
{{- $secrets := $v.secrets -}}
{{- $engine := $v.engine -}}
{{- $scaling := $v.autoscaling -}}
{{- $mode := include "fifa.ensureMode" . -}}
{{- $many := or (ne $scaling.mode "none") (gt (int $v.replicaCount) 1) -}}
{{- $compiles := ne $engine.backend "onnxruntime" -}}
{{- $bad := list -}}

{{- /* The settings, by themselves */ -}}
{{- $topics := compact (list $kafka.frames_topic $kafka.verdicts_topic $kafka.dead_letters_topic $kafka.shadow_topic) -}}
{{- if ne (len (uniq $topics)) (len $topics) -}}
{{- $bad = append $bad (printf "settings.kafka: frames_topic, verdicts_topic, dead_letters_topic and shadow_topic are %s; give different topics" (join ", " $topics)) -}}
{{- end -}}
{{- if and (eq $v.settings.streams.memory "topic") (has $kafka.state_topic $topics) -}}
{{- $bad = append $bad (printf "settings.kafka.state_topic %s must be a topic of its own; give it another name" $kafka.state_topic) -}}
{{- end -}}
{{- $snapshot := add 8192 (mul (int64 $v.settings.streams.max_tracks) (add 2000 (mul 10 (len $kafka.frames_topic)))) -}}
{{- if and (eq $v.settings.streams.memory "topic") (gt $snapshot (int64 $kafka.max_request_bytes)) -}}
{{- $bad = append $bad (printf "settings.streams.max_tracks %d may need %d bytes for what is remembered of a stream, above settings.kafka.max_request_bytes %d; lower the one or raise the other" (int64 $v.settings.streams.max_tracks) $snapshot (int64 $kafka.max_request_bytes)) -}}
{{- end -}}
{{- if and (eq $kafka.processing_guarantee "exactly_once") (le (int64 $kafka.transaction_timeout_ms) (mul 2 $kafka.commit_interval_ms)) -}}
{{- $bad = append $bad (printf "settings.kafka.transaction_timeout_ms %d must be more than twice commit_interval_ms %d; raise it" (int64 $kafka.transaction_timeout_ms) (int64 $kafka.commit_interval_ms)) -}}
{{- end -}}
{{- if gt (int64 $letters.min_answers) (int64 $letters.window) -}}
{{- $bad = append $bad (printf "settings.dead_letters.min_answers %d is above window %d, and max_ratio would never be looked at; lower it" (int64 $letters.min_answers) (int64 $letters.window)) -}}
{{- end -}}
{{- with $v.settings.telemetry.score_baseline -}}
{{- $sum := 0.0 -}}
{{- $least := 0.0 -}}
{{- range . }}{{ $sum = addf $sum . }}{{ $least = minf $least . }}{{ end -}}
{{- if or (lt (len .) 2) (lt $least 0.0) (lt $sum 0.99) (gt $sum 1.01) -}}
{{- $bad = append $bad (printf "settings.telemetry.score_baseline %s must be at least two shares of 0 or more that sum to 1" (toRawJson .)) -}}
{{- end -}}
{{- end -}}
{{- range concat (fromJsonArray (include "fifa.httpPorts" .)) (fromJsonArray (include "fifa.kafkaPorts" .)) -}}
{{- if or (lt (int .) 1) (gt (int .) 65535) -}}
{{- $bad = append $bad (printf "port %d, in a setting that holds an address, is none; give one from 1 to 65535" (int .)) -}}
{{- end -}}
{{- end -}}
{{- with $v.settings.engine -}}
{{- if and (ne (default "off" .roll_out) "off") (not .candidate) -}}
{{- $bad = append $bad (printf "settings.engine.roll_out %s needs settings.engine.candidate, the folder of the second bundle" .roll_out) -}}
{{- end -}}
{{- end -}}
{{- range splitList "," $kafka.bootstrap_servers -}}
{{- if not (regexMatch "^[A-Za-z0-9.\\[\\]:_-]+:[0-9]+$" (trim .)) -}}
{{- $bad = append $bad (printf "settings.kafka.bootstrap_servers: %q is not HOST:PORT; write a comma-separated list of them" .) -}}
{{- else if regexMatch "^(localhost|127\\.|\\[::1\\])" (trim .) -}}
{{- $bad = append $bad (printf "settings.kafka.bootstrap_servers: %q is the pod itself; name the brokers" .) -}}
{{- end -}}
{{- end -}}
{{- if not (int $runtime.health_port) -}}
{{- $bad = append $bad "settings.runtime.health_port 0 turns the probes off, and no pod would become ready; give a port above 1023" -}}
{{- else if lt (int $runtime.health_port) 1024 -}}
{{- $bad = append $bad (printf "settings.runtime.health_port %d needs a right that the pod does not have; give a port above 1023" (int $runtime.health_port)) -}}
{{- end -}}
{{- if regexMatch "^(localhost|127\\.|::1)" $runtime.health_host -}}
{{- $bad = append $bad (printf "settings.runtime.health_host %q is not reached by the kubelet; set 0.0.0.0, or :: for IPv6" $runtime.health_host) -}}
{{- end -}}
{{- if $many -}}
{{- range list "transactional_id" "group_instance_id" -}}
{{- if get $kafka . -}}
{{- $bad = append $bad (printf "settings.kafka.%s %q would be the name of every pod, and they would fence each other; leave it null, or have one pod and autoscaling.mode none" . (get $kafka .)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Time */ -}}
{{- $hook := dig "preStop" "sleep" "seconds" 0 $v.lifecycle | int -}}
{{- $drain := add (ceil $runtime.drain_timeout_s | int) 10 $hook -}}
{{- if lt (int $v.terminationGracePeriodSeconds) (int $drain) -}}
{{- $bad = append $bad (printf "terminationGracePeriodSeconds %d kills a worker that still drains: settings.runtime.drain_timeout_s, 10 s to leave the group and the preStop hook take %d; raise it" (int $v.terminationGracePeriodSeconds) (int $drain)) -}}
{{- end -}}
{{- $budget := include "fifa.startupBudget" . | int -}}
{{- if le (mul $budget 1000) (int64 $kafka.bootstrap_timeout_ms) -}}
{{- $bad = append $bad (printf "probes.startup: periodSeconds x failureThreshold is %d s, and settings.kafka.bootstrap_timeout_ms %d alone may take as long: the kubelet would kill the worker before it says what is wrong; raise failureThreshold" $budget (int64 $kafka.bootstrap_timeout_ms)) -}}
{{- end -}}
{{- $rollout := include "fifa.rolloutBudget" . | int -}}
{{- if $v.progressDeadlineSeconds -}}
{{- if le (int $v.progressDeadlineSeconds) $rollout -}}
{{- $bad = append $bad (printf "progressDeadlineSeconds %d fails a roll-out that only takes its time: engine, startup probe and minReadySeconds may take %d s; raise it, or leave it null" (int $v.progressDeadlineSeconds) $rollout) -}}
{{- end -}}
{{- end -}}
{{- range $probe, $timing := $v.probes -}}
{{- if gt (int $timing.timeoutSeconds) (int $timing.periodSeconds) -}}
{{- $bad = append $bad (printf "probes.%s.timeoutSeconds %d is above periodSeconds %d; lower it" $probe (int $timing.timeoutSeconds) (int $timing.periodSeconds)) -}}
{{- end -}}
{{- end -}}

{{- /* Roll-outs and availability */ -}}
{{- $surge := toString $v.updateStrategy.maxSurge | trimSuffix "%" -}}
{{- $gone := toString $v.updateStrategy.maxUnavailable | trimSuffix "%" -}}
{{- if and (eq $surge "0") (eq $gone "0") -}}
{{- $bad = append $bad "updateStrategy: maxSurge and maxUnavailable are both 0, and no roll-out could begin; raise one" -}}
{{- end -}}
{{- with $v.podDisruptionBudget -}}
{{- if and .enabled (eq (kindIs "invalid" .maxUnavailable) (kindIs "invalid" .minAvailable)) -}}
{{- $bad = append $bad "podDisruptionBudget: give one of maxUnavailable and minAvailable, and null for the other" -}}
{{- end -}}
{{- end -}}
{{- if not (dig "limits" "memory" "" $v.resources) -}}
{{- $bad = append $bad "resources.limits.memory is not set: a worker that grows would take the node with it; give one" -}}
{{- end -}}
{{- $limit := dig "limits" "cpu" "" $v.resources | toString -}}
{{- if and $limit (not $compiles) -}}
{{- $cores := ternary (divf (trimSuffix "m" $limit) 1000) (float64 $limit) (hasSuffix "m" $limit) | ceil | int -}}
{{- $threads := int $v.settings.engine.threads -}}
{{- if or (not $threads) (gt $threads $cores) -}}
{{- $bad = append $bad (printf "settings.engine.threads %d (0: as many as the node has cores) and resources.limits.cpu %s: the kernel would stop the threads most of the time; set threads to at most %d" $threads $limit $cores) -}}
{{- end -}}
{{- end -}}

{{- /* Image and engine */ -}}
{{- if and (eq $v.image.tag "latest") (not $v.image.digest) -}}
{{- $bad = append $bad "image.tag latest is another image tomorrow; give a version, or image.digest" -}}
{{- end -}}
{{- if and $compiles (not $v.gpu.enabled) -}}
{{- $bad = append $bad (printf "engine.backend %s needs a GPU; set gpu.enabled, or engine.backend onnxruntime" $engine.backend) -}}
{{- end -}}
{{- if and $v.gpu.enabled (not $compiles) -}}
{{- $bad = append $bad "gpu.enabled with engine.backend onnxruntime would hold a GPU that nothing uses; set engine.backend tensorrt or tensorrt-rtx, or gpu.enabled false" -}}
{{- end -}}
{{- if eq $mode "none" -}}
{{- if and $compiles (not $engine.source.path) -}}
{{- $bad = append $bad (printf "engine.ensure.mode none with engine.backend %s: the engine in the package is no plan; give engine.source.path, a folder that `fifa-stream engine build` wrote, or let it be built" $engine.backend) -}}
{{- end -}}
{{- if and (ne $engine.precision "fp32") (not $engine.source.path) -}}
{{- $bad = append $bad (printf "engine.precision %s with engine.ensure.mode none: nothing is built, and the engine in the package is fp32; set mode init" $engine.precision) -}}
{{- end -}}
{{- end -}}
{{- if and $engine.source.path (eq (default "" $v.settings.engine.pinned_digest) (index .Chart.Annotations "fifa-stream/engine-digest")) -}}
{{- $bad = append $bad "settings.engine.pinned_digest is that of the engine in the package, and engine.source.path names another; pin yours (`fifa-stream engine inspect DIR`), or set null" -}}
{{- end -}}
{{- if $v.settings.engine.folder -}}
{{- $bad = append $bad "settings.engine.folder is what engine.source.path and engine.ensure set; leave it null" -}}
{{- end -}}
{{- with $engine.ensure -}}
{{- $plans := or .minShapes .optShapes .maxShapes .workspace .timingCache .computeCapabilities (not (kindIs "invalid" .optLevel)) -}}
{{- if and $plans (not $compiles) -}}
{{- $bad = append $bad "engine.ensure: optLevel, workspace, minShapes, optShapes, maxShapes, timingCache and computeCapabilities are for plans; leave them out with engine.backend onnxruntime" -}}
{{- end -}}
{{- if and .computeCapabilities (ne $engine.backend "tensorrt-rtx") -}}
{{- $bad = append $bad "engine.ensure.computeCapabilities is for tensorrt-rtx: TensorRT builds for the GPU that is there; leave it out" -}}
{{- end -}}
{{- if and .timingCache (ne $engine.backend "tensorrt") -}}
{{- $bad = append $bad "engine.ensure.timingCache is for tensorrt; leave it out" -}}
{{- end -}}
{{- if and (eq $engine.precision "int8") (ne $mode "none") (not .acceptancePath) -}}
{{- $bad = append $bad "engine.precision int8 is calibrated and judged on an acceptance pack; give engine.ensure.acceptancePath" -}}
{{- end -}}
{{- if and (eq $engine.precision "bf16") .acceptancePath -}}
{{- $bad = append $bad "engine.ensure.acceptancePath with engine.precision bf16: a builder cannot run bf16 to judge it; leave it out, and run `fifa-stream engine check` where the GPU is" -}}
{{- end -}}
{{- end -}}
{{- if and (eq $engine.precision "bf16") (not $compiles) -}}
{{- $bad = append $bad "engine.precision bf16 is not what ONNX Runtime computes on a CPU; choose fp32, fp16 or int8" -}}
{{- end -}}
{{- if and (eq $mode "job") (ne $engine.cache.type "pvc") -}}
{{- $bad = append $bad (printf "engine.ensure.mode job with engine.cache.type %s: what the Job builds must be where the worker finds it; set engine.cache.type pvc" $engine.cache.type) -}}
{{- end -}}
{{- if and (ne $mode "none") (eq $engine.cache.type "pvc") (or $many (eq $mode "job")) (not $engine.cache.pvc.existingClaim) (not (has "ReadWriteMany" $engine.cache.pvc.accessModes)) -}}
{{- $bad = append $bad (printf "engine.cache.pvc.accessModes [%s]: several pods mount the claim, and on two nodes they could not; add ReadWriteMany, or set engine.cache.type emptyDir" (join ", " $engine.cache.pvc.accessModes)) -}}
{{- end -}}

{{- /* Secrets */ -}}
{{- $filled := list
  (list "ssl_cafile" "secrets.tls.ca.existingSecret" $secrets.tls.ca.existingSecret)
  (list "ssl_certfile" "secrets.tls.client.existingSecret" $secrets.tls.client.existingSecret)
  (list "ssl_keyfile" "secrets.tls.client.existingSecret" $secrets.tls.client.existingSecret)
  (list "ssl_password_file" "secrets.tls.client.passphraseKey" (and $secrets.tls.client.existingSecret $secrets.tls.client.passphraseKey))
  (list "sasl_password_file" "secrets.sasl.existingSecret" $secrets.sasl.existingSecret)
  (list "sasl_oauth_client_secret_file" "secrets.oauth.existingSecret" $secrets.oauth.existingSecret)
  (list "sasl_oauth_token_file" "secrets.oauth.projectedToken.enabled" $secrets.oauth.projectedToken.enabled) -}}
{{- range $filled -}}
{{- if and (index . 2) (get $kafka (index . 0)) -}}
{{- $bad = append $bad (printf "settings.kafka.%s and %s are both set; keep one" (index . 0) (index . 1)) -}}
{{- end -}}
{{- end -}}
{{- $effective := (fromYaml (include "fifa.settings" .)).kafka -}}
{{- if and $effective.ssl_certfile (not $effective.ssl_keyfile) -}}
{{- $bad = append $bad "settings.kafka.ssl_certfile needs ssl_keyfile, or use secrets.tls.client" -}}
{{- end -}}
{{- if hasPrefix "SASL" $kafka.security_protocol -}}
{{- if eq (default "" $kafka.sasl_mechanism) "OAUTHBEARER" -}}
{{- if eq (empty $effective.sasl_oauth_token_file) (empty $kafka.sasl_oauth_token_url) -}}
{{- $bad = append $bad "OAUTHBEARER needs one source of tokens: secrets.oauth.projectedToken (or settings.kafka.sasl_oauth_token_file), or settings.kafka.sasl_oauth_token_url" -}}
{{- end -}}
{{- if and $kafka.sasl_oauth_token_url (not (and $kafka.sasl_oauth_client_id $effective.sasl_oauth_client_secret_file)) -}}
{{- $bad = append $bad "settings.kafka.sasl_oauth_token_url needs sasl_oauth_client_id and secrets.oauth.existingSecret" -}}
{{- end -}}
{{- if and $kafka.sasl_oauth_token_url (not (hasPrefix "https://" $kafka.sasl_oauth_token_url)) -}}
{{- $bad = append $bad (printf "settings.kafka.sasl_oauth_token_url %q must be https: a client secret goes there" $kafka.sasl_oauth_token_url) -}}
{{- end -}}
{{- else if not (and $kafka.sasl_mechanism $kafka.sasl_username $effective.sasl_password_file) -}}
{{- $bad = append $bad (printf "settings.kafka.security_protocol %s needs sasl_mechanism, sasl_username and secrets.sasl.existingSecret" $kafka.security_protocol) -}}
{{- end -}}
{{- end -}}
{{- range list (list "tls.ca" $secrets.tls.ca.existingSecret "SSL") (list "tls.client" $secrets.tls.client.existingSecret "SSL") (list "sasl" $secrets.sasl.existingSecret "SASL") (list "oauth" $secrets.oauth.existingSecret "SASL") -}}
{{- if and (index . 1) (not (contains (index . 2) $kafka.security_protocol)) -}}
{{- $bad = append $bad (printf "secrets.%s.existingSecret is not used with settings.kafka.security_protocol %s; set one with %s in it, or leave the secret out" (index . 0) $kafka.security_protocol (index . 2)) -}}
{{- end -}}
{{- end -}}
{{- if and $secrets.s3.existingSecret $v.settings.claims.s3_access_key_id -}}
{{- $bad = append $bad "settings.claims.s3_access_key_id and secrets.s3.existingSecret are both set; keep the secret, which has both keys" -}}
{{- else if $v.settings.claims.s3_access_key_id -}}
{{- $bad = append $bad "settings.claims.s3_access_key_id needs its secret key; use secrets.s3.existingSecret for both" -}}
{{- end -}}

{{- /* Autoscaling */ -}}
{{- if has $scaling.mode (list "keda" "hpa") -}}
{{- if gt (int $scaling.minReplicas) (int $scaling.maxReplicas) -}}
{{- $bad = append $bad (printf "autoscaling.minReplicas %d is above maxReplicas %d; lower it" (int $scaling.minReplicas) (int $scaling.maxReplicas)) -}}
{{- end -}}
{{- end -}}
{{- if and (eq $scaling.mode "hpa") (lt (int $scaling.minReplicas) 1) -}}
{{- $bad = append $bad "autoscaling.minReplicas 0 needs autoscaling.mode keda: a HorizontalPodAutoscaler does not start from nothing; set 1" -}}
{{- end -}}
{{- if and (eq $scaling.mode "hpa") (not $scaling.hpa.metrics) -}}
{{- $bad = append $bad "autoscaling.hpa.metrics is empty; give at least one" -}}
{{- end -}}
{{- if eq $scaling.mode "keda" -}}
{{- with $scaling.keda -}}
{{- if and .fallback.enabled (gt (int .fallback.replicas) (int $scaling.maxReplicas)) -}}
{{- $bad = append $bad (printf "autoscaling.keda.fallback.replicas %d is above maxReplicas %d; lower it" (int .fallback.replicas) (int $scaling.maxReplicas)) -}}
{{- end -}}
{{- if and .allowIdleConsumers .limitToPartitionsWithLag -}}
{{- $bad = append $bad "autoscaling.keda: allowIdleConsumers and limitToPartitionsWithLag exclude each other; keep one" -}}
{{- end -}}
{{- if and (eq (default "" $kafka.sasl_mechanism) "OAUTHBEARER") (not .existingTriggerAuthentication) -}}
{{- $bad = append $bad "autoscaling.mode keda with OAUTHBEARER: KEDA gets its tokens by its own means; give autoscaling.keda.existingTriggerAuthentication" -}}
{{- end -}}
{{- range splitList "," (default $kafka.bootstrap_servers .bootstrapServers) -}}
{{- if not (regexMatch "[.\\[]" .) -}}
{{- $bad = append $bad (printf "autoscaling.keda.bootstrapServers: KEDA looks %q up from its own namespace; write kafka.NAMESPACE.svc:9092" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Monitoring and tests */ -}}
{{- if and $v.serviceMonitor.enabled $v.podMonitor.enabled -}}
{{- $bad = append $bad "serviceMonitor and podMonitor are both enabled, and every pod would be scraped twice; keep one" -}}
{{- end -}}
{{- if not $v.service.enabled -}}
{{- if $v.serviceMonitor.enabled -}}
{{- $bad = append $bad "serviceMonitor.enabled needs service.enabled; set it, or use podMonitor" -}}
{{- end -}}
{{- if $v.tests.enabled -}}
{{- $bad = append $bad "tests.enabled needs service.enabled; set it, or tests.enabled false" -}}
{{- end -}}
{{- end -}}

{{- /* Strimzi */ -}}
{{- with $v.strimzi -}}
{{- if and (or .topics.enabled .user.enabled) (not .cluster) -}}
{{- $bad = append $bad "strimzi.topics and strimzi.user need strimzi.cluster, the name of the Kafka object" -}}
{{- end -}}
{{- if .topics.enabled -}}
{{- $most := ternary (int $v.replicaCount) (int $scaling.maxReplicas) (has $scaling.mode (list "none" "external")) -}}
{{- if and (gt $most (int .topics.frames.partitions)) (not (and (eq $scaling.mode "keda") $scaling.keda.allowIdleConsumers)) (ne $scaling.mode "external") -}}
{{- $bad = append $bad (printf "strimzi.topics.frames.partitions %d: with %d pods some would have nothing to do; lower replicaCount or autoscaling.maxReplicas" (int .topics.frames.partitions) $most) -}}
{{- end -}}
{{- range $name, $topic := omit .topics "enabled" "keep" -}}
{{- with index (default dict $topic.config) "min.insync.replicas" -}}
{{- if gt (int .) (int $topic.replicas) -}}
{{- $bad = append $bad (printf "strimzi.topics.%s: min.insync.replicas %d is above replicas %d, and nothing could be written; lower it" $name (int .) (int $topic.replicas)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if .user.enabled -}}
{{- $tls := hasPrefix "tls" .user.authentication -}}
{{- if ne (ternary "SSL" "SASL" $tls) (ternary "SASL" $kafka.security_protocol (hasPrefix "SASL" $kafka.security_protocol)) -}}
{{- $bad = append $bad (printf "strimzi.user.authentication %s does not go with settings.kafka.security_protocol %s; tls goes with SSL, scram-sha-512 with SASL_SSL or SASL_PLAINTEXT" .user.authentication $kafka.security_protocol) -}}
{{- end -}}
{{- if and (not $tls) (ne (default "" $kafka.sasl_username) (include "fifa.userName" $)) -}}
{{- $bad = append $bad (printf "settings.kafka.sasl_username must be the name of the KafkaUser, %s" (include "fifa.userName" $)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- if $bad -}}
{{- fail (printf "these values do not go together:\n  - %s\n" (join "\n  - " $bad)) -}}
{{- end -}}
{{- end -}}
