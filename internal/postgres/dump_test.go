package postgres

import (
	"strings"
	"testing"
)

func TestStripDump(t *testing.T) {
	dump := func(token, version, body string) string {
		return "--\n-- PostgreSQL database dump\n--\n\n\\restrict " + token + "\n\n-- Dumped from database version " + version +
			"\n-- Dumped by pg_dump version " + version + "\n\nSET statement_timeout = 0;\n" + body +
			"\n--\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict " + token + "\n\n"
	}
	// What users wrote stays, also when it looks like something else.
	body := "CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$\nSELECT '\n\\restrict x\n-- Dumped from database version 1\n" +
		"--\n-- PostgreSQL database dump complete\n--\n\\unrestrict x\n'$$;\n"
	got := stripDump(dump("a1", "15.1", body))
	if got != stripDump(dump("b2", "15.18 (Debian)", body)) {
		t.Error("two dumps of one schema differ")
	}
	want := "--\n-- PostgreSQL database dump\n--\n\nSET statement_timeout = 0;\n" + body + "\n--\n-- PostgreSQL database dump complete\n--\n"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if stripDump("") != "" {
		t.Error("nothing became something")
	}
}

func TestHidePasswords(t *testing.T) {
	in := "CREATE USER MAPPING FOR app SERVER far OPTIONS (\n    password 'it''s a secret',\n    \"user\" 'bob'\n);\n\nSELECT\n    password 'visible'\n);\n"
	out := hidePasswords(in)
	if strings.Contains(out, "secret") || !strings.Contains(out, "    \"user\" 'bob'") || !strings.Contains(out, "visible") {
		t.Error(out)
	}
}
