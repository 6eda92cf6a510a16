package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/sdk"
)

func (a *app) projectsCmd() *cobra.Command {
	return group("projects", "List, create, change, share, transfer and delete projects",
		"A project holds branches that share one major version of Postgres.", []string{"project"},
		a.projectsList(), a.projectsGet(), a.projectsCreate(), a.projectsUpdate(),
		a.projectsShare(), a.projectsUnshare(), a.projectsPermissions(), a.projectsTransfer(), a.projectsRequestTransfer(),
		a.projectsAcceptTransfer(), a.projectsDelete())
}

func (a *app) projectsList() *cobra.Command {
	var f sdk.ProjectFilter
	c := &cobra.Command{Use: "list [flags]", Aliases: []string{"ls"}, Short: "List the projects that the key can see",
		Example: "  bough projects list\n  bough projects list --search shop -o json\n  bough projects list --shared"}
	var shared bool
	c.Flags().BoolVar(&shared, "shared", false, "the projects of others that are shared with you")
	c.Flags().StringVar(&f.OrgID, "org-id", "", "only projects of this organization")
	c.Flags().StringVar(&f.Search, "search", "", "only projects whose name or id contains this")
	return a.verb(c, cobra.NoArgs, func(ctx context.Context, _ []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		t := &table{header: []string{"ID", "NAME", "POSTGRES", "REGION", "CREATED"}, empty: "No projects. Make one with: bough projects create"}
		projects := cl.Projects
		if shared {
			if f.OrgID != "" {
				return usagef("--shared lists projects of other organizations: leave --org-id out")
			}
			projects, t.empty = cl.SharedProjects, "Nobody shares a project with you."
		}
		all, err := sdk.All(projects(ctx, f))
		if err != nil {
			return err
		}
		for _, p := range all {
			t.add(p.ID, p.Name, strconv.Itoa(p.PgVersion), p.RegionID, a.ago(p.CreatedAt))
		}
		return a.printTable(all, t)
	})
}

func (a *app) projectFields(p *sdk.Project) fields {
	var f fields
	f.add("Id", p.ID)
	f.add("Name", p.Name)
	f.add("Postgres", strconv.Itoa(p.PgVersion))
	f.add("Region", p.RegionID)
	f.add("Organization", deref(p.OrgID))
	f.add("Keeps history for", duration(p.HistoryRetentionSeconds))
	if !p.StorePasswords {
		f.add("Passwords", "not stored")
	}
	if p.Settings != nil && p.Settings.EnableLogicalReplication != nil && *p.Settings.EnableLogicalReplication {
		f.add("Logical replication", "on")
	}
	if p.Settings != nil {
		f.add("Audit log", string(deref(p.Settings.AuditLogLevel)))
		f.add("Connections from", connectionsFrom(p.Settings))
	}
	f.add("Created", a.when(p.CreatedAt))
	f.add("Used", usedBy(p))
	f.add("Quotas", quotas(p.Settings))
	return f
}

// usedBy says what a project used in the consumption period, "" for nothing.
func usedBy(p *sdk.Project) string {
	if p.ActiveTimeSeconds+p.WrittenDataBytes+p.DataTransferBytes == 0 {
		return ""
	}
	return fmt.Sprintf("active %s, compute %s, written %s, transferred %s (since %s)", duration(p.ActiveTimeSeconds),
		duration(p.ComputeTimeSeconds), bytesOf(p.WrittenDataBytes), bytesOf(p.DataTransferBytes), p.ConsumptionPeriodStart.UTC().Format(time.DateOnly))
}

// quotas lists a project's quotas, "" when it has none.
func quotas(s *sdk.ProjectSettings) string {
	if s == nil || s.Quota == nil {
		return ""
	}
	q, list := s.Quota, []string{}
	for _, l := range []struct {
		name  string
		limit *int64
	}{
		{"active_time_seconds", q.ActiveTimeSeconds}, {"compute_time_seconds", q.ComputeTimeSeconds}, {"written_data_bytes", q.WrittenDataBytes},
		{"data_transfer_bytes", q.DataTransferBytes}, {"logical_size_bytes", q.LogicalSizeBytes},
	} {
		if deref(l.limit) > 0 {
			list = append(list, fmt.Sprintf("%s=%d", l.name, *l.limit))
		}
	}
	return strings.Join(list, ", ")
}

// parseQuota reads --quota.
func parseQuota(given map[string]int64) (*sdk.ProjectQuota, error) {
	var q sdk.ProjectQuota
	fields := map[string]**int64{
		"active_time_seconds": &q.ActiveTimeSeconds, "compute_time_seconds": &q.ComputeTimeSeconds, "written_data_bytes": &q.WrittenDataBytes,
		"data_transfer_bytes": &q.DataTransferBytes, "logical_size_bytes": &q.LogicalSizeBytes,
	}
	for name, limit := range given {
		if fields[name] == nil {
			return nil, usagef("--quota has no %q; there are %s", name, strings.Join(slices.Sorted(maps.Keys(fields)), ", "))
		}
		*fields[name] = &limit
	}
	return &q, nil
}

// connectionsFrom says who may connect, "" for everybody.
func connectionsFrom(s *sdk.ProjectSettings) string {
	ips := s.AllowedIps
	switch {
	case deref(s.BlockPublicConnections):
		return "loopback and private addresses"
	case ips == nil || len(deref(ips.Ips)) == 0:
		return ""
	case deref(ips.ProtectedBranchesOnly):
		return strings.Join(*ips.Ips, ", ") + " (to protected branches; to others from everywhere)"
	}
	return strings.Join(*ips.Ips, ", ")
}

func (a *app) projectsGet() *cobra.Command {
	c := &cobra.Command{Use: "get [project] [flags]", Aliases: []string{"show"}, Short: "Show one project",
		Long:    "Show a project, named by id or name. Without one: --project-id, BOUGH_PROJECT_ID, or the only project.",
		Example: "  bough projects get brisk-ember-81697531\n  bough projects get -o json"}
	return a.verb(a.projectFlag(c), cobra.MaximumNArgs(1), func(ctx context.Context, args []string) error {
		a.firstIsProject(args)
		cl, id, err := a.project(ctx)
		if err != nil {
			return err
		}
		p, err := cl.Project(ctx, id)
		if err != nil {
			return err
		}
		return a.printFields(p, a.projectFields(p))
	})
}

// firstIsProject lets the first argument name the project.
func (a *app) firstIsProject(args []string) {
	if len(args) > 0 {
		a.projectID = args[0]
	}
}

func (a *app) projectsCreate() *cobra.Command {
	var p struct {
		name, org, region, database, role, branch string
		pg                                        int
		retention                                 string
		noPasswords, logical                      bool
		compute                                   computeFlags
	}
	c := &cobra.Command{Use: "create [name] [flags]", Short: "Make a project with a default branch, role, database and compute",
		Example: "  bough projects create shop\n" +
			"  bough projects create --name shop --pg-version 16 --database orders --cu 0.25-2 --suspend-timeout 10m\n" +
			"  bough projects create shop -o json | jq -r '.connection_uris[0].connection_uri'"}
	f := c.Flags()
	f.StringVar(&p.name, "name", "", "name (default: the id)")
	f.StringVar(&p.org, "org-id", "", "organization that owns it (default: the first of the user)")
	f.StringVar(&p.region, "region-id", "", "region (default: the server's)")
	f.IntVar(&p.pg, "pg-version", 0, "major version of Postgres (default: the server's)")
	f.StringVar(&p.branch, "branch", "", "name of the default branch (default: main)")
	f.StringVar(&p.database, "database", "", "name of the first database (default: neondb)")
	f.StringVar(&p.role, "role", "", "name of the first role (default: the database with _owner)")
	f.StringVar(&p.retention, "history-retention", "", "how long history is kept, such as 24h or 7d")
	f.BoolVar(&p.logical, "logical-replication", false, logicalHelp)
	f.BoolVar(&p.noPasswords, "no-store-passwords", false, "do not keep role passwords, so that they cannot be shown again")
	p.compute.add(c)
	return a.verb(a.waitFlag(c), cobra.MaximumNArgs(1), func(ctx context.Context, args []string) error {
		name, err := oneName(args, p.name, "name", false)
		if err != nil {
			return err
		}
		req := sdk.ProjectCreate{Name: opt(name), OrgID: opt(p.org), RegionID: opt(p.region)}
		if p.pg != 0 {
			req.PgVersion = &p.pg
		}
		if p.noPasswords {
			req.StorePasswords = new(false)
		}
		if p.logical {
			req.Settings = &sdk.ProjectSettings{EnableLogicalReplication: &p.logical}
		}
		if req.HistoryRetentionSeconds, err = seconds("--history-retention", p.retention); err != nil {
			return err
		}
		if p.branch != "" || p.database != "" || p.role != "" {
			req.Branch = &sdk.ProjectCreateBranch{Name: opt(p.branch), DatabaseName: opt(p.database), RoleName: opt(p.role)}
		}
		low, high, suspend, err := p.compute.parse()
		if err != nil {
			return err
		}
		if low != nil || suspend != nil {
			req.DefaultEndpointSettings = &sdk.DefaultEndpointSettings{AutoscalingLimitMinCU: low, AutoscalingLimitMaxCU: high,
				SuspendTimeoutSeconds: suspend}
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		made, err := cl.CreateProject(ctx, req)
		if err != nil {
			return err
		}
		if made.Operations, err = a.wait(ctx, cl, made.Operations); err != nil {
			a.note("project %s was created, but:", made.Project.ID)
			return err
		}
		if err := a.refresh(ctx, cl, &made.Branch, made.Endpoints); err != nil {
			return err
		}
		out := a.projectFields(&made.Project)
		out.add("Branch", made.Branch.Name+" ("+made.Branch.ID+")")
		for _, e := range made.Endpoints {
			out.add("Endpoint", e.ID+" ("+string(e.CurrentState)+")")
		}
		for _, u := range made.ConnectionUris {
			out.add("Connection", u.ConnectionURI)
		}
		return a.printFields(made, out)
	})
}

const logicalHelp = "let the project publish by logical replication (wal_level=logical); cannot be taken back"

// refresh reads a branch and endpoints again once their operations have ended, so that what is shown is how they are now.
func (a *app) refresh(ctx context.Context, cl *sdk.Client, b *sdk.Branch, endpoints []sdk.Endpoint) error {
	if a.noWait {
		return nil
	}
	if b != nil {
		now, err := cl.Branch(ctx, b.ProjectID, b.ID)
		if err != nil {
			return err
		}
		*b = *now
	}
	for i := range endpoints {
		now, err := cl.Endpoint(ctx, endpoints[i].ProjectID, endpoints[i].ID)
		if err != nil {
			return err
		}
		endpoints[i] = *now
	}
	return nil
}

func (a *app) projectsUpdate() *cobra.Command {
	var name, retention, audit string
	var logical, protectedOnly, blockPublic bool
	var ips []string
	var quota map[string]int64
	var compute computeFlags
	c := &cobra.Command{Use: "update [project] [flags]", Short: "Rename a project or change its settings",
		Long: "Change a project. --cu and --suspend-timeout are for computes made from now on.",
		Example: "  bough projects update brisk-ember-81697531 --name shop\n  bough projects update shop --history-retention 7d\n" +
			"  bough projects update shop --logical-replication\n  bough projects update shop --allowed-ips 203.0.113.7,10.0.0.0/8"}
	c.Flags().StringVar(&name, "name", "", "new name")
	c.Flags().StringVar(&retention, "history-retention", "", "how long history is kept, such as 24h or 7d")
	c.Flags().BoolVar(&logical, "logical-replication", false, logicalHelp+"; restarts running computes")
	c.Flags().StringVar(&audit, "audit-log", "", "log statements with pgaudit: base, extended or full; cannot be turned off again")
	c.Flags().StringSliceVar(&ips, "allowed-ips", nil, `who may connect: addresses, blocks like 10.0.0.0/8, ranges like 10.0.0.1-10.0.0.9; "" lets everybody in`)
	c.Flags().BoolVar(&protectedOnly, "allowed-ips-protected-only", false, "apply --allowed-ips to protected branches only")
	c.Flags().BoolVar(&blockPublic, "block-public", false, "accept connections from loopback and private addresses only, whatever --allowed-ips says")
	c.Flags().StringToInt64Var(&quota, "quota", nil, "what the project may use in a month, such as active_time_seconds=36000,written_data_bytes=1000000000; 0 is unlimited")
	compute.add(c)
	return a.verb(a.waitFlag(a.projectFlag(c)), cobra.MaximumNArgs(1), func(ctx context.Context, args []string) error {
		a.firstIsProject(args)
		u := sdk.ProjectUpdate{Name: opt(name)}
		var err error
		if u.HistoryRetentionSeconds, err = seconds("--history-retention", retention); err != nil {
			return err
		}
		low, high, suspend, err := compute.parse()
		if err != nil {
			return err
		}
		if low != nil || suspend != nil {
			u.DefaultEndpointSettings = &sdk.DefaultEndpointSettings{AutoscalingLimitMinCU: low, AutoscalingLimitMaxCU: high,
				SuspendTimeoutSeconds: suspend}
		}
		var settings sdk.ProjectSettings
		changed := c.Flags().Changed
		if changed("logical-replication") { // false is for the server to refuse
			settings.EnableLogicalReplication = &logical
		}
		if audit != "" {
			settings.AuditLogLevel = (*api.ProjectSettingsAuditLogLevel)(&audit)
		}
		if changed("block-public") {
			settings.BlockPublicConnections = &blockPublic
		}
		if changed("quota") {
			if settings.Quota, err = parseQuota(quota); err != nil {
				return err
			}
		}
		if changed("allowed-ips") || changed("allowed-ips-protected-only") {
			settings.AllowedIps = &sdk.AllowedIPs{}
			if changed("allowed-ips") {
				settings.AllowedIps.Ips = &ips
			}
			if changed("allowed-ips-protected-only") {
				settings.AllowedIps.ProtectedBranchesOnly = &protectedOnly
			}
		}
		if settings != (sdk.ProjectSettings{}) {
			u.Settings = &settings
		}
		if u == (sdk.ProjectUpdate{}) {
			return usagef("nothing to change: give a flag; bough projects update --help lists them")
		}
		cl, id, err := a.project(ctx)
		if err != nil {
			return err
		}
		out, err := cl.UpdateProject(ctx, id, u)
		if err != nil {
			return err
		}
		if out.Operations, err = a.wait(ctx, cl, out.Operations); err != nil {
			return err
		}
		return a.printFields(out, a.projectFields(&out.Project))
	})
}

func (a *app) projectsDelete() *cobra.Command {
	c := &cobra.Command{Use: "delete <project> [flags]", Aliases: []string{"rm"}, Short: "Delete a project with everything in it",
		Example: "  bough projects delete brisk-ember-81697531\n  bough projects delete shop --yes"}
	return a.verb(a.yesFlag(c), cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		if args[0] == "" {
			return usagef("the name of the project is empty")
		}
		id, err := a.findProject(ctx, cl, args[0])
		if err != nil {
			return err
		}
		if err := a.confirm("Delete project %s with all its branches and data?", id); err != nil {
			return err
		}
		p, err := cl.DeleteProject(ctx, id)
		if err != nil {
			return err
		}
		return a.deleted(p, "project "+p.ID+" ("+p.Name+")")
	})
}

// deleted prints the answer for programs and one line for people.
func (a *app) deleted(v any, what string) error {
	if a.output == "json" {
		return a.print(v, nil)
	}
	_, err := fmt.Fprintln(a.Out, "Deleted "+printable(what))
	return err
}
