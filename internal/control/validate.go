package control

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/postgres"
)

const (
	minCU             = 0.25
	maxCU             = 1024.0 // far above any machine: catches slips, not ambitions
	defaultCU         = 0.25
	defaultMaxCU      = 2.0
	maxSuspend        = 604_800   // seconds
	maxRetention      = 2_592_000 // seconds
	defaultRetention  = 86_400    // seconds
	provisionerScaled = "k8s-neonvm"
	provisionerFixed  = "k8s-pod"
)

// notBuilt refuses a field that asks for something that does not exist yet: storing it would be a promise.
func notBuilt(what string) error {
	return core.Errorf(core.KindNotImplemented, "NOT_IMPLEMENTED", "%s is not built yet; leave it out", what)
}

// startSize completes and checks the limits of something new: a fixed size that nobody names is the lower default.
func startSize(lo, hi *float64, defaults core.EndpointDefaults, provisioner string) (float64, float64, error) {
	if provisioner == provisionerFixed && lo == nil && hi == nil {
		lo, hi = &defaults.MinCU, &defaults.MinCU
	}
	return size(lo, hi, defaults, provisioner)
}

// size completes a pair of limits and checks it.
func size(lo, hi *float64, defaults core.EndpointDefaults, provisioner string) (float64, float64, error) {
	if provisioner == provisionerFixed { // one limit names the size
		lo, hi = cmp.Or(lo, hi), cmp.Or(hi, lo)
	}
	minimum, maximum := defaults.MinCU, defaults.MaxCU
	if lo != nil {
		minimum = *lo
		if hi == nil && maximum < minimum {
			maximum = minimum
		}
	}
	if hi != nil {
		maximum = *hi
		if lo == nil && minimum > maximum {
			minimum = maximum
		}
	}
	switch {
	case minimum < minCU || maximum < minCU:
		return 0, 0, core.Invalidf("autoscaling limits must be at least %v CU", minCU)
	case maximum > maxCU:
		return 0, 0, core.Invalidf("autoscaling_limit_max_cu must be at most %v", maxCU)
	case minimum > maximum:
		return 0, 0, core.Invalidf("autoscaling_limit_min_cu (%v) must not be greater than autoscaling_limit_max_cu (%v)", minimum, maximum)
	case provisioner == provisionerFixed && minimum != maximum:
		return 0, 0, core.Invalidf("the provisioner k8s-pod has a fixed size: autoscaling_limit_min_cu and autoscaling_limit_max_cu must be equal")
	}
	return minimum, maximum, nil
}

func checkProvisioner(p string) (string, error) {
	switch p {
	case "":
		return provisionerScaled, nil
	case provisionerScaled, provisionerFixed:
		return p, nil
	}
	return "", core.Invalidf("provisioner must be one of k8s-neonvm, k8s-pod")
}

func checkSuspend(v int64) error {
	if v < -1 || v > maxSuspend {
		return core.Invalidf("suspend_timeout_seconds must be between -1 (never) and %d; 0 is the default of 300", maxSuspend)
	}
	return nil
}

// poolSettings refuses settings of a program that is not there.
func poolSettings(asked bool) error {
	if asked {
		return notHere("pgbouncer_settings", "no PgBouncer runs here, and the published API has given the field up; leave it out")
	}
	return nil
}

// passwordless refuses to change what is not to be changed in the published service either.
func passwordless(asked *bool) error {
	if asked != nil && !*asked {
		return notHere("endpoint.passwordless_access", "the published service does not let it be changed either; leave it out or send true")
	}
	return nil
}

func (d DefaultsSpec) apply(cur core.EndpointDefaults, provisioner string) (core.EndpointDefaults, error) {
	err := poolSettings(d.PgBouncer)
	if err != nil {
		return cur, err
	}
	if cur.MinCU, cur.MaxCU, err = startSize(d.MinCU, d.MaxCU, cur, provisioner); err != nil {
		return cur, err
	}
	if d.SuspendTimeout != nil {
		if err := checkSuspend(*d.SuspendTimeout); err != nil {
			return cur, err
		}
		cur.SuspendTimeout = *d.SuspendTimeout
	}
	if d.PGSettings != nil {
		cur.PGSettings = d.PGSettings
	}
	return cur, nil
}

func checkRetention(v int64) error {
	if v < 0 || v > maxRetention {
		return core.Invalidf("history_retention_seconds must be between 0 and %d", maxRetention)
	}
	return nil
}

var regionForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,58}[a-z0-9])?$`)

func checkRegion(id string) error {
	if !regionForm.MatchString(id) {
		return core.Invalidf("region_id %q is not a region id: lower-case letters, digits and dashes, at most 60", clip(id))
	}
	return nil
}

// checkCatalogName refuses names of roles and databases that PostgreSQL would not take, or that are the platform's.
func checkCatalogName(what, name string, reserved func(string) bool) error {
	switch {
	case name == "":
		return core.Invalidf("%s name must not be empty", what)
	case len(name) > 63:
		return core.Invalidf("%s name is longer than 63 bytes", what)
	case !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return core.Invalidf("%s name must be valid UTF-8 without control characters", what)
	case reserved(name):
		return core.Invalidf("%s name %q is reserved; choose another", what, name)
	}
	return nil
}

func checkRoleName(name string) error {
	return checkCatalogName("role", name, postgres.ReservedRole)
}

func checkDatabaseName(name string) error {
	return checkCatalogName("database", name, postgres.ReservedDatabase)
}

// defaultSettings is what a project's settings are before anyone sets them.
const defaultSettings = `{
	"allowed_ips": {"ips": [], "protected_branches_only": false},
	"enable_logical_replication": false,
	"maintenance_window": {"weekdays": [5], "start_time": "07:00", "end_time": "08:00"},
	"block_public_connections": false,
	"block_vpc_connections": false,
	"hipaa": false
}`

// cloudSettings mean nothing on one's own machine: what they ask for cannot be promised.
type cloudSettings struct {
	BlockVPC bool `json:"block_vpc_connections"`
	HIPAA    bool `json:"hipaa"`
}

func (c cloudSettings) check() error {
	switch {
	case c.BlockVPC:
		return notHere("settings.block_vpc_connections", "there are no VPC endpoints here; settings.allowed_ips and settings.block_public_connections say who may connect; leave it out or send false")
	case c.HIPAA:
		return notHere("settings.hipaa", "it is an agreement with the provider of a cloud, not a property of a server; leave it out or send false")
	}
	return nil
}

// notHere refuses what cannot be had here. why says what to do instead.
func notHere(what, why string) error {
	return core.Errorf(core.KindUnprocessable, "NOT_SUPPORTED", "%s is not supported: %s", what, why)
}

var clockForm = regexp.MustCompile(`^([01][0-9]|2[0-3]):[0-5][0-9]$`)

// mergeSettings puts what was sent over what there is, key by key at the top level and within allowed_ips (a change of
// protected_branches_only alone must not empty the list) and quota, and checks it.
func mergeSettings(cur, sent json.RawMessage) (json.RawMessage, error) {
	out, err := mergeObjects("settings", cur, sent, "allowed_ips", "quota")
	if err != nil {
		return nil, err
	}
	var asked struct {
		cloudSettings
		accessSettings
		Quota              quota              `json:"quota"`
		LogicalReplication bool               `json:"enable_logical_replication"`
		Window             *maintenanceWindow `json:"maintenance_window"`
		Preload            preloadSettings    `json:"preload_libraries"`
	}
	if err := json.Unmarshal(out, &asked); err != nil {
		return nil, core.Invalidf("settings: %s", jsonProblem(err))
	}
	if logicalReplication(cur) && !asked.LogicalReplication {
		return nil, core.Errorf(core.KindUnprocessable, "LOGICAL_REPLICATION_ENABLED",
			"settings.enable_logical_replication cannot be turned off again, because replication slots need it; send true or leave it out")
	}
	for _, err := range []error{asked.cloudSettings.check(), asked.accessSettings.check(), asked.Quota.check()} {
		if err != nil {
			return nil, err
		}
	}
	if asked.Window != nil {
		if err := asked.Window.check(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// mergeObjects puts the keys of sent over those of cur; null leaves a key alone. The values of deep are merged the same way.
func mergeObjects(what string, cur, sent json.RawMessage, deep ...string) (json.RawMessage, error) {
	merged := map[string]json.RawMessage{}
	for _, doc := range []json.RawMessage{cur, sent} {
		if len(doc) == 0 {
			continue
		}
		layer := map[string]json.RawMessage{}
		if err := json.Unmarshal(doc, &layer); err != nil {
			return nil, core.Invalidf("%s must be an object", what)
		}
		for k, v := range layer {
			if string(v) == "null" {
				continue
			}
			if slices.Contains(deep, k) && merged[k] != nil {
				var err error
				if v, err = mergeObjects(what+"."+k, merged[k], v); err != nil {
					return nil, err
				}
			}
			merged[k] = v
		}
	}
	out, err := json.Marshal(merged)
	return out, core.Wrap(err, "control.settings", "")
}

// logicalReplication tells whether a project's settings turn logical replication on.
func logicalReplication(settings json.RawMessage) bool {
	var s struct {
		On bool `json:"enable_logical_replication"`
	}
	return json.Unmarshal(settings, &s) == nil && s.On
}

func jsonProblem(err error) string {
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Sprintf("%s must not be a %s", e.Field, e.Value)
	}
	return "not valid"
}
