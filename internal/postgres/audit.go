package postgres

import "slices"

// AuditLibrary writes the audit log, into the compute's own log: https://github.com/pgaudit/pgaudit.
const AuditLibrary = "pgaudit"

// auditSettings are what the levels of a project's settings.audit_log_level log, the same as in the published service: base,
// what changes the schema; extended, everything but what changes nothing (pgaudit's class MISC); full, everything, with the
// values of parameters. Statements on catalogs alone are left out.
func auditSettings(level string) []Setting {
	var classes string
	parameters := "off"
	switch level {
	case "base":
		classes = "ddl"
	case "extended":
		classes = "all, -misc"
	case "full":
		classes, parameters = "all", "on"
	default:
		return nil
	}
	return []Setting{{"pgaudit.log", classes}, {"pgaudit.log_parameter", parameters}, {"pgaudit.log_catalog", "off"}, {"pgaudit.log_client", "off"}, {"pgaudit.log_level", "log"}}
}

// fixed puts settings over those of the user.
func fixed(s, over []Setting) []Setting {
	for _, f := range over {
		s = slices.DeleteFunc(s, func(x Setting) bool { return x.Name == f.Name })
	}
	return append(s, over...)
}
