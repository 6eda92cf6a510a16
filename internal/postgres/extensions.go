package postgres

import (
	"slices"
	"strings"

	"github.com/boughdb/bough/internal/core"
)

// An extension that is not marked as trusted can be created by superusers only, and nobody but the platform is one. The
// operator's allow-list says which of them the owner of a database may create all the same: their script runs as the bootstrap
// superuser, as PostgreSQL does it for trusted ones.

// safeExtensions is the default list. What it holds neither runs the caller's code as a superuser nor reaches files or
// programs of the machine: functions that could are revoked from PUBLIC or ask for a membership. Not in it: languages without
// a sandbox, file_fdw, adminpack, pg_surgery, and what only superusers can use once it is there (pageinspect, pg_walinspect,
// amcheck).
var safeExtensions = strings.Fields(`
	autoinc bloom dblink dict_xsyn earthdistance insert_username intagg moddatetime old_snapshot pg_buffercache pg_freespacemap
	pg_prewarm pg_stat_statements pg_visibility pgrowlocks pgstattuple postgres_fdw refint sslinfo xml2

	vector pg_uuidv7 hypopg hll ip4r rum pg_hint_plan pg_partman pg_cron pgaudit pg_repack pg_wait_sampling timescaledb
	postgis postgis_topology postgis_raster postgis_sfcgal postgis_tiger_geocoder address_standardizer
	address_standardizer_data_us`)

// AllowList says which untrusted extensions the owner of a database may create. The zero value allows none.
type AllowList struct {
	all   bool
	names map[string]bool
}

// ParseAllowList reads the operator's choice: names of extensions, "default" for the list that comes with Bough, "all", or
// "none", separated by commas. A name behind a minus is taken out again.
func ParseAllowList(text string) (AllowList, error) {
	list := AllowList{names: map[string]bool{}}
	words := strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' || r == '\t' })
	for _, word := range words {
		name, remove := strings.CutPrefix(word, "-")
		switch {
		case word == "none" && len(words) > 1:
			return list, core.Invalidf("--extensions-allow: none stands alone; leave it or the rest of the list out")
		case word == "none":
		case word == "default":
			for _, n := range safeExtensions {
				list.names[n] = true
			}
		case word == "all":
			list.all = true
		case !extensionName(name):
			return list, core.Invalidf("--extensions-allow: %q is not an extension's name; a list looks like default,pageinspect,-dblink", clip(word))
		default:
			list.names[name] = !remove
		}
	}
	return list, nil
}

// extensionName tells names that are safe in a path, as PostgreSQL asks for itself (check_valid_extension_name).
func extensionName(name string) bool {
	return name != "" && len(name) <= maxNameBytes && !strings.HasPrefix(name, "-") && !strings.HasSuffix(name, "-") &&
		!strings.Contains(name, "--") && !strings.ContainsAny(name, "/\\\"'$\x00") && name != "." && name != ".."
}

// Allows tells whether the list holds an extension.
func (a AllowList) Allows(name string) bool {
	allowed, named := a.names[name]
	return allowed || (a.all && !named)
}

// String is the list in one form, to see whether it has changed.
func (a AllowList) String() string {
	var words []string
	if a.all {
		words = append(words, "all")
	}
	for name, allowed := range a.names {
		if !allowed {
			name = "-" + name
		}
		words = append(words, name)
	}
	slices.Sort(words)
	return strings.Join(words, ",")
}

// afterScript is run behind an allowed extension's own scripts. What a script makes belongs to the bootstrap superuser: here
// the owners of databases get what superusers would have granted them. Nothing but plain GRANTs may stand here: a script runs
// with the caller's schema on the search path, where anything that is looked up, an operator too, may be the caller's.
var afterScript = map[string]string{
	"postgres_fdw":       "GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO " + GroupRole + ";",
	"dblink":             "GRANT USAGE ON FOREIGN DATA WRAPPER dblink_fdw TO " + GroupRole + ";",
	"pg_stat_statements": "GRANT EXECUTE ON FUNCTION pg_stat_statements_reset TO " + GroupRole + ";",
	"pg_cron":            "GRANT USAGE ON SCHEMA cron TO " + GroupRole + ";",
	"pg_partman":         "GRANT SELECT, INSERT, UPDATE, DELETE ON @extschema@.part_config, @extschema@.part_config_sub TO " + GroupRole + ";",
}
