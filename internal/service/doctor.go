package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/boughdb/bough/internal/certs"
	"github.com/boughdb/bough/internal/compute/local"
	"github.com/boughdb/bough/internal/control"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/internal/storage"
	"github.com/boughdb/bough/internal/store"
)

// Diagnosis is what `bough doctor` shows.
type Diagnosis struct {
	DataDir   string          `json:"data_dir"`
	At        time.Time       `json:"at"`
	Server    string          `json:"server"`     // running, not running, not answering
	Fine      []string        `json:"fine"`       // what was looked at and is as it should be
	Notes     []string        `json:"notes"`      // worth knowing, nothing wrong
	Findings  []control.Drift `json:"findings"`   // the worst first
	Repaired  []control.Drift `json:"repaired"`   // by the server, since it started
	Unchecked []string        `json:"not_looked"` // and why
}

// doctor collects a Diagnosis.
type doctor struct {
	Diagnosis
	layout layout
	report control.Report
}

// DoctorOptions say what the flags of a server would: only needed when none runs.
type DoctorOptions struct {
	DatabaseURL  string
	PostgresDirs []string
}

const (
	doctorTimeout = time.Minute
	certNotice    = 14 * 24 * time.Hour // before a certificate ends
	clockSlack    = time.Minute
)

// Doctor looks at a data directory and the machine: through its server, when that runs, else from outside. It changes
// nothing; a server repairs what it finds by its own rules.
func Doctor(ctx context.Context, dir string, o DoctorOptions) (Diagnosis, error) {
	ctx, cancel := context.WithTimeout(ctx, doctorTimeout)
	defer cancel()
	st, err := Look(ctx, dir)
	if err != nil {
		return Diagnosis{}, err
	}
	d := &doctor{layout: layout{st.DataDir}, Diagnosis: Diagnosis{
		DataDir: st.DataDir, At: time.Now(), Fine: []string{}, Notes: []string{}, Findings: []control.Drift{}, Repaired: []control.Drift{}, Unchecked: []string{},
	}}
	var facts ServerFacts
	if st.PID != 0 {
		d.Server = "running"
		if err := askServer(ctx, d.layout, "/doctor", &facts); err != nil {
			d.Server = "not answering"
			d.find(control.DriftServer, fmt.Sprintf("pid %d", st.PID), fmt.Sprintf("The server (pid %d) runs and does not answer: %s.", st.PID, core.UserMessage(err)),
				"run this as the user that runs the server, and read its log; if it hangs, end it and start it again: computes run on meanwhile")
		}
	} else {
		d.Server = "not running"
		d.Notes = append(d.Notes, "The server is not running; start it with: bough serve. What it would repair is listed below.")
	}
	if d.Server == "running" {
		d.online(ctx, st, facts)
	} else if err := d.offline(ctx, o); err != nil {
		return d.Diagnosis, err
	}
	d.environment(ctx)
	d.summary()
	return d.Diagnosis, nil
}

func (d *doctor) ok(format string, args ...any) {
	d.Fine = append(d.Fine, fmt.Sprintf(format, args...))
}
func (d *doctor) note(format string, args ...any) {
	d.Notes = append(d.Notes, fmt.Sprintf(format, args...))
}

// find adds something that no look of the server finds.
func (d *doctor) find(kind control.DriftKind, subject, problem, advice string) {
	d.Findings = append(d.Findings, control.NewDrift(control.Finding{Kind: kind, Subject: subject, Problem: problem, Advice: advice}, d.At))
}

func (d *doctor) add(list []control.Finding) {
	for _, f := range list {
		d.Findings = append(d.Findings, control.NewDrift(f, d.At))
	}
}

// online takes over what the server says.
func (d *doctor) online(ctx context.Context, st Status, facts ServerFacts) {
	d.report = facts.Report
	d.ok("server: running (pid %d), %s", st.PID, st.APIURL)
	if !st.Healthy {
		d.find(control.DriftControlDatabase, "healthz", "The server runs and its control database does not answer: "+st.Problem+".", "see log/control.log in the data directory")
	}
	if len(facts.Builds) == 0 {
		d.find(control.DriftMissingMajor, "any", "The server has found no PostgreSQL.", fmt.Sprintf("install your system's package, or run: bough postgres install %d", postgres.DefaultMajor))
	} else {
		d.ok("PostgreSQL: %s", strings.Join(facts.Builds, ", "))
	}
	if facts.Sizes == "enforced" {
		d.ok("compute sizes: enforced by control groups")
	} else {
		d.note("The sizes of computes are %s.", facts.Sizes)
	}
	d.space(facts.Space, facts.Backend, false)
	d.certificate(facts.CertExpires, facts.LocalCA)
	if facts.Resolves {
		d.ok("names: *.%s resolve here", facts.Domain)
	} else {
		d.note("Names under *.%s do not resolve on this machine, so connection strings use localhost and the endpoint option; installing libnss-myhostname helps, for *.localhost.", facts.Domain)
	}
	dialer := net.Dialer{Timeout: 2 * time.Second}
	if conn, err := dialer.DialContext(ctx, "tcp", st.PGAddr); err != nil {
		d.find(control.DriftServer, st.PGAddr, "The Postgres proxy does not accept connections at "+st.PGAddr+".", "see the server's log")
	} else {
		_ = conn.Close()
		d.ok("ports: the API and the Postgres proxy (%s) answer", st.PGAddr)
	}
}

// offline looks from outside.
func (d *doctor) offline(ctx context.Context, o DoctorOptions) error {
	l := d.layout
	driver, err := local.New(nil, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	site := control.Site{
		DataDir: l.dir, Volumes: l.volumes(), WAL: l.path("wal"), RunDir: l.runDir(), LogDir: l.logs(), UID: -1, GID: -1, Driver: driver,
	}
	if uid, gid, ok := d.owner(); ok {
		site.UID, site.GID = uid, gid
	}
	url := o.DatabaseURL
	if url == "" && !gone(filepath.Join(l.controlSocket(), postgres.SocketName)) {
		url = l.controlURL()
	}
	var inv store.Inventory
	if url == "" {
		d.Unchecked = append(d.Unchecked, "projects, branches, endpoints and operations, and whether every file has an owner: the control database is not running")
	} else {
		inv, err = store.ReadInventory(ctx, url)
		site.Rows = func(context.Context) (store.Inventory, error) { return inv, err }
	}
	if d.report, err = control.Inspect(ctx, site); err != nil {
		return err
	}
	builds, err := postgres.FindBuilds(ctx, o.PostgresDirs)
	if err != nil {
		d.Unchecked = append(d.Unchecked, "PostgreSQL builds: "+core.UserMessage(err))
	}
	var versions []string
	for _, b := range builds {
		versions = append(versions, b.Version)
	}
	if len(builds) == 0 {
		d.find(control.DriftMissingMajor, "any", "No PostgreSQL (14 to 18) was found.", fmt.Sprintf("install your system's package, or run: bough postgres install %d, or name a folder with --postgres-dir", postgres.DefaultMajor))
	} else {
		d.ok("PostgreSQL: %s", strings.Join(versions, ", "))
	}
	d.add(control.MissingMajors(inv, builds))
	d.add(checkSecrets(l))
	if space, err := storage.SpaceOf(l.dir); err == nil {
		d.space(space, "", true)
	}
	if expires, ok := certs.LocalExpiry(l.path("certs")); ok {
		d.certificate(expires, true)
	}
	return nil
}

func (d *doctor) space(s storage.Space, backend string, add bool) {
	if add { // a server adds it to its own report
		d.add(spaceFindings(s))
	}
	if s.Level == storage.LevelOK {
		if backend != "" {
			backend = " (" + backend + ")"
		}
		d.ok("space: %.1f GiB free on the disk, %.1f GiB in the pool%s", gib(s.Host.Free), gib(s.Pool.Free), backend)
	}
}

func (d *doctor) certificate(expires time.Time, local bool) {
	left := expires.Sub(d.At)
	switch {
	case expires.IsZero():
	case local && left > 0:
		d.ok("certificate: of the local authority, until %s, renewed by itself", expires.UTC().Format(time.DateOnly))
	case local:
		d.note("The local authority's certificate ended %s; the server renews it.", expires.UTC().Format(time.DateOnly))
	case left <= 0:
		d.find(control.DriftEnvironment, "certificate", "The proxy's certificate ended "+expires.UTC().Format(time.DateOnly)+": clients that check it are refused.", "replace the files of --tls-cert and --tls-key and restart the server")
	case left < certNotice:
		d.find(control.DriftEnvironment, "certificate", "The proxy's certificate ends "+expires.UTC().Format(time.DateOnly)+".", "replace the files of --tls-cert and --tls-key and restart the server")
	default:
		d.ok("certificate: until %s", expires.UTC().Format(time.DateOnly))
	}
}

// owner is the OS user of the computes.
func (d *doctor) owner() (uid, gid int, ok bool) {
	raw, err := os.ReadFile(d.layout.path("compute-user"))
	if err != nil {
		return 0, 0, false
	}
	u, err := user.Lookup(strings.TrimSpace(string(raw)))
	if err != nil {
		return 0, 0, false
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	return uid, gid, errors.Join(err1, err2) == nil
}

// environment looks at the machine.
func (d *doctor) environment(ctx context.Context) {
	if raw, err := os.ReadFile(d.layout.path("compute-user")); err == nil {
		name := strings.TrimSpace(string(raw))
		if _, _, ok := d.owner(); !ok {
			d.find(control.DriftEnvironment, "compute user", "The OS user "+name+" that computes run as does not exist.", "make it again with the user id that owns "+d.layout.volumes()+": useradd --system --uid ID "+name)
		} else if dir, ok := d.traversable(name); !ok {
			d.find(control.DriftEnvironment, "compute user", "The OS user "+name+" that computes run as cannot enter "+dir+".", "chmod o+x "+dir+", or move the data directory")
		} else {
			d.ok("compute user: %s exists and reaches the data directory", name)
		}
	}
	now := time.Now()
	switch newest := newestFile(d.layout); {
	case now.Year() < 2025:
		d.find(control.DriftEnvironment, "clock", "The clock says "+now.UTC().Format(time.RFC3339)+", which cannot be.", "set the clock; certificates and timeouts depend on it")
	case newest.Sub(now) > clockSlack:
		d.find(control.DriftEnvironment, "clock", "The clock went back: files of the data directory were written at "+newest.UTC().Format(time.RFC3339)+", which is still to come.", "set the clock")
	default:
		d.ok("clock: %s", now.UTC().Format(time.RFC3339))
	}
	if d.Server == "not running" {
		d.ports(ctx)
	}
}

// ports tells whether the addresses of the last run are free.
func (d *doctor) ports(ctx context.Context) {
	raw, err := os.ReadFile(d.layout.admin())
	var a AdminFile
	if err != nil || json.Unmarshal(raw, &a) != nil {
		return
	}
	api := strings.TrimSuffix(strings.TrimPrefix(a.APIURL, "http://"), "/api/v2")
	for _, addr := range []string{api, a.PGAddr} {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
		if err != nil {
			d.note("The address %s of the last run is taken by another program; choose another one with --http-listen or --pg-listen.", addr)
			continue
		}
		_ = l.Close()
	}
}

// traversable tells whether a user may enter every folder on the way to the data directory; dir is the first it may not.
func (d *doctor) traversable(name string) (dir string, ok bool) {
	u, err := user.Lookup(name)
	if err != nil {
		return "", false
	}
	groups, _ := u.GroupIds()
	groups = append(groups, u.Gid)
	path := "/"
	for _, part := range append([]string{""}, strings.Split(strings.Trim(d.layout.dir, "/"), "/")...) {
		path = filepath.Join(path, part)
		info, uid, gid, err := statOwner(path)
		if err != nil {
			return path, false
		}
		bit := os.FileMode(0o001)
		if strconv.Itoa(uid) == u.Uid {
			bit = 0o100
		} else if slices.Contains(groups, strconv.Itoa(gid)) {
			bit = 0o010
		}
		if info.Mode().Perm()&bit == 0 {
			return path, false
		}
	}
	return "", true
}

// newestFile is when the files that every start or commit writes were last written.
func newestFile(l layout) time.Time {
	var newest time.Time
	for _, path := range []string{l.lock(), l.admin(), filepath.Join(l.control(), "global", "pg_control"), l.path("pool.img")} {
		if info, err := os.Stat(path); err == nil && info.ModTime().After(newest) {
			newest = info.ModTime()
		}
	}
	return newest
}

// summary adds the report to the diagnosis.
func (d *doctor) summary() {
	r := d.report
	d.Findings = append(d.Findings, r.Open...)
	control.SortDrifts(d.Findings)
	d.Repaired = append(d.Repaired, r.Repaired...)
	d.Unchecked = append(d.Unchecked, r.Unchecked...)
	if r.Looked["projects"] > 0 || d.Server == "running" {
		d.ok("compared: %d projects, %d branches and %d endpoints with %d volumes, %d WAL directories, %d processes, %d open operations",
			r.Looked["projects"], r.Looked["branches"], r.Looked["endpoints"], r.Looked["volumes"], r.Looked["wal_directories"],
			r.Looked["processes"], r.Looked["open_operations"])
	}
}
