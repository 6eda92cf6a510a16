package postgres

// For tests on every version, whether or not there is a pg_dump of it.
var (
	CopyRoles    = copyRoles
	CreateLike   = createLike
	CopyDatabase = copyDatabase
)
