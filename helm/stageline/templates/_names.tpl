{{/*
Names, labels and references that several templates share. Objects are called stageline, whatever the release is called,
because a config may name them; where `nameOverride` gives another name, a config says so in `cluster.defaults`.
*/}}

{{/* What objects are called, and what the names of the others begin with. */}}
{{- define "stageline.name" -}}
{{ .Values.nameOverride | default "stageline" }}
{{- end }}

{{/* The account that starts jobs. */}}
{{- define "stageline.launcherAccount" -}}
{{ .Values.launcher.serviceAccount.name | default (printf "%s-launcher" (include "stageline.name" .)) }}
{{- end }}

{{/* The account under which the steps of a pipeline run: the launcher's, unless KFP has one of its own. */}}
{{- define "stageline.stepsAccount" -}}
{{- $own := ternary .Values.kfp.serviceAccount "" (.Values.kfp.enabled | default false) -}}
{{ $own | default (include "stageline.launcherAccount" .) }}
{{- end }}

{{/* Whether names are limited; empty: no. Not before Kubernetes 1.30, which NOTES say. */}}
{{- define "stageline.namePolicy" -}}
{{- if and (.Values.namePolicy).enabled (semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version) }}yes{{ end -}}
{{- end }}

{{/* The account of training pods. */}}
{{- define "stageline.trainerAccount" -}}
{{ .Values.trainer.serviceAccount.name | default (printf "%s-trainer" (include "stageline.name" .)) }}
{{- end }}

{{/*
Labels and annotations of an object. Ours win over those of one kind of object, and these, empty ones too, over those of
all; each key is there once. Call with (dict "root" $ "component" "launcher"), and with "labels" and "annotations" if it has its own.
*/}}
{{- define "stageline.metadata" -}}
{{- $own := dict
    "app.kubernetes.io/name" "stageline"
    "app.kubernetes.io/instance" .root.Release.Name
    "app.kubernetes.io/version" (.root.Chart.AppVersion | replace "+" "_")
    "app.kubernetes.io/component" .component
    "app.kubernetes.io/part-of" "stageline"
    "app.kubernetes.io/managed-by" .root.Release.Service
    "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_") -}}
labels:
  {{- mergeOverwrite (dict) (.root.Values.labels | default dict) (.labels | default dict) $own | toYaml | nindent 2 }}
{{- with mergeOverwrite (dict) (.root.Values.annotations | default dict) (.annotations | default dict) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The namespaces in which jobs run, as a JSON list. */}}
{{- define "stageline.namespaces" -}}
{{ .Values.jobNamespaces | default (list .Release.Namespace) | toJson }}
{{- end }}

{{/*
Reference of an image: by digest where there is one; `global.imageRegistry` takes the place of its registry's host. Call
with (dict "root" $ "image" .Values.images.trainer).
*/}}
{{- define "stageline.image" -}}
{{- $repository := .image.repository -}}
{{- with (.root.Values.global).imageRegistry -}}
{{- $parts := splitList "/" $repository -}}
{{- if and (gt (len $parts) 1) (regexMatch "[.:]|^localhost$" (first $parts)) }}{{ $parts = rest $parts }}{{ end -}}
{{- $repository = printf "%s/%s" . (join "/" $parts) -}}
{{- end -}}
{{- if .image.digest -}}
{{ $repository }}@{{ .image.digest }}
{{- else -}}
{{ $repository }}:{{ .image.tag | default (.root.Chart.AppVersion | replace "+" "_") }}
{{- end -}}
{{- end }}

{{/* Secrets by which images are pulled, each once, as a JSON list: `global.imagePullSecrets` holds names or {name: …}. */}}
{{- define "stageline.pullSecrets" -}}
{{- $names := .Values.images.pullSecrets | default list -}}
{{- range (.Values.global).imagePullSecrets -}}
{{- if kindIs "string" . }}{{ $names = append $names . }}{{ else }}{{ $names = append $names .name }}{{ end -}}
{{- end -}}
{{ $names | uniq | toJson }}
{{- end }}

{{/* The user of pods; empty where the cluster chooses one (`cluster.run_as_user: null`). */}}
{{- define "stageline.user" -}}
{{- if hasKey (.Values.cluster | default dict) "run_as_user" }}{{ with .Values.cluster.run_as_user }}{{ int64 . }}{{ end }}{{ else }}1000{{ end -}}
{{- end }}

{{/* The claim that jobs mount; empty without one. */}}
{{- define "stageline.claim" -}}
{{- if .Values.storage.existingClaim -}}
{{ .Values.storage.existingClaim }}
{{- else if .Values.storage.claim.create -}}
{{ .Values.storage.claim.name }}
{{- end -}}
{{- end }}

{{/* The Secret with S3 credentials; empty without one (workload identity, or no S3). */}}
{{- define "stageline.s3Secret" -}}
{{- if .Values.storage.s3.existingSecret -}}
{{ .Values.storage.s3.existingSecret }}
{{- else if .Values.storage.s3.credentials.accessKeyId -}}
{{ include "stageline.name" . }}-s3
{{- end -}}
{{- end }}

{{/*
The defaults of a stageline config in namespace .namespace: `root` and the section `cluster`. Keys that are empty are
left out, so that stageline's own defaults hold. Call with (dict "root" $ "namespace" "team-a"); "section" replaces keys
of the section and leaves out what only training pods need.
*/}}
{{- define "stageline.defaults" -}}
{{- $values := .root.Values -}}
{{- $s3 := $values.storage.s3 -}}
{{- $claim := include "stageline.claim" .root -}}
{{- $storage := dict -}}
{{- if $claim -}}
{{- $storage = dict "claim" $claim "mount_path" $values.storage.mountPath -}}
{{- with $values.storage.subPath }}{{ $_ := set $storage "sub_path" . }}{{ end -}}
{{- end -}}
{{- $objects := dict
    "endpoint" $s3.endpoint
    "region" $s3.region
    "secret" (include "stageline.s3Secret" .root)
    "proxy" $s3.proxy
    "no_proxy" $s3.noProxy
    "ca_config_map" $s3.caConfigMap
    "ca_secret" $s3.caSecret
    "ca_key" (ternary $s3.caKey "" (or $s3.caConfigMap $s3.caSecret | empty | not)) -}}
{{- $given := dict -}}
{{- range $key, $value := $objects }}{{ if $value }}{{ $_ := set $given $key $value }}{{ end }}{{ end -}}
{{- if or $s3.root $given -}}
{{- $_ := set $given "path_style" $s3.pathStyle -}}
{{- $_ := set $storage "s3" $given -}}
{{- end -}}
{{- $policy := $values.networkPolicy -}}
{{- $network := dict -}}
{{- with $policy.metricsFrom }}{{ $_ := set $network "metrics_from" . }}{{ end -}}
{{- if or $policy.limitEgress $policy.enabled -}}
{{- $_ := set $network "limit_egress" true -}}
{{- $_ := set $network "store_ports" $policy.storePorts -}}
{{- with $policy.identityEndpoints }}{{ $_ := set $network "identity_endpoints" . }}{{ end -}}
{{- with $policy.egress }}{{ $_ := set $network "egress" . }}{{ end -}}
{{- end -}}
{{- $cluster := dict
    "namespace" .namespace
    "image" (include "stageline.image" (dict "root" .root "image" $values.images.trainer))
    "image_pull_policy" $values.images.trainer.pullPolicy
    "pull_secrets" (include "stageline.pullSecrets" .root | fromJsonArray)
    "service_account" (include "stageline.trainerAccount" .root)
    "defaults" $values.nameOverride
    "name_prefix" (ternary "stageline-" "" (($values.namePolicy).enabled | default false))
    "queue" $values.localQueue.name
    "priority_class" $values.priorityClass.name
    "network" $network
    "storage" $storage -}}
{{- $section := dict -}}
{{- range $key, $value := $cluster }}{{ if $value }}{{ $_ := set $section $key $value }}{{ end }}{{ end -}}
{{- $section = mustMergeOverwrite $section (deepCopy ($values.cluster | default dict)) -}}
{{- range $key, $value := .section }}{{ if $value }}{{ $_ := set $section $key $value }}{{ end }}{{ end -}}
{{- $root := $s3.root | default (ternary $values.storage.mountPath "" (ne $claim "")) -}}
{{- with $root }}root: {{ . | quote }}
{{ end -}}
{{- if and $values.podMonitor.enabled (not .section) }}trainer: {metrics_port: {{ int64 ($values.podMonitor.port | default 9400) }}}
{{ end -}}
cluster:
  {{- toYaml $section | nindent 2 }}
{{- end }}

{{/* What the schema cannot say in words: contradictions between values, all at once. */}}
{{- define "stageline.faults" -}}
{{- $faults := list -}}
{{- $storage := .Values.storage -}}
{{- $keys := $storage.s3.credentials -}}
{{- $cluster := .Values.cluster | default dict -}}
{{- $trainer := $cluster.service_account | default (include "stageline.trainerAccount" .) -}}
{{- if eq .Values.enabled false -}}
{{- $faults = append $faults "enabled=false leaves this chart out of one that has it as a dependency under `condition: stageline.enabled`; here nothing else can" -}}
{{- end -}}
{{- if and $storage.existingClaim $storage.claim.create -}}
{{- $faults = append $faults "storage.existingClaim and storage.claim.create are both set; give one of them" -}}
{{- end -}}
{{- if and $storage.s3.existingSecret $keys.accessKeyId -}}
{{- $faults = append $faults "storage.s3.existingSecret and storage.s3.credentials are both set; give one of them" -}}
{{- end -}}
{{- if ne (empty $keys.accessKeyId) (empty $keys.secretAccessKey) -}}
{{- $faults = append $faults "storage.s3.credentials needs accessKeyId and secretAccessKey together" -}}
{{- end -}}
{{- if and $storage.s3.caConfigMap $storage.s3.caSecret -}}
{{- $faults = append $faults "storage.s3.caConfigMap and storage.s3.caSecret are both set; give one of them" -}}
{{- end -}}
{{- range $key := list "endpoint" "proxy" -}}
{{- $url := index $storage.s3 $key | default "" -}}
{{- if contains "@" $url -}}
{{- $faults = append $faults (printf "storage.s3.%s holds a user or password, which everybody who may see a job could read" $key) -}}
{{- else if regexMatch "(?i)^https?://(169\\.254\\.|\\[fe[89ab])" $url -}}
{{- $faults = append $faults (printf "storage.s3.%s is a link-local address, where a machine's identity is kept and no store is" $key) -}}
{{- end -}}
{{- end -}}
{{- if regexMatch "^/+(tmp|dev/+shm|var/+run/+secrets/+stageline)(/|$)" $storage.mountPath -}}
{{- $faults = append $faults (printf "storage.mountPath %s is what pods have for other ends; choose another folder" $storage.mountPath) -}}
{{- end -}}
{{- if and .Values.localQueue.create (not (and .Values.localQueue.name .Values.localQueue.clusterQueue)) -}}
{{- $faults = append $faults "localQueue.create needs localQueue.name and localQueue.clusterQueue" -}}
{{- end -}}
{{- if and .Values.priorityClass.create (not .Values.priorityClass.name) -}}
{{- $faults = append $faults "priorityClass.create needs priorityClass.name" -}}
{{- end -}}
{{- if eq (include "stageline.launcherAccount" .) $trainer -}}
{{- $faults = append $faults "launcher and trainer share one service account, which would give training pods the launcher's rights; name two" -}}
{{- end -}}
{{- if and .Values.kfp.enabled (eq (.Values.kfp.serviceAccount | default "") $trainer) -}}
{{- $faults = append $faults "kfp.serviceAccount and training pods share one service account; name two" -}}
{{- end -}}
{{- if and (.Values.namePolicy).enabled (hasKey $cluster "name_prefix") (not (hasPrefix "stageline-" $cluster.name_prefix)) -}}
{{- $faults = append $faults "namePolicy.enabled needs a cluster.name_prefix that begins with stageline-" -}}
{{- end -}}
{{- if $faults }}{{ fail (printf "\n  - %s" (join "\n  - " $faults)) }}{{ end -}}
{{- end }}
